//! The policy that tests of single packets use: every kind of rule once, small enough to have in mind.

/// Three tiers on three bridges, and machines elsewhere.
pub const TIERS: &str = "\
networks:
  front: { subnet: 10.70.1.0/24, gateway: 10.70.1.1, subnet6: 'fd70:1::/64' }
  back:  { subnet: 10.70.2.0/24, gateway: 10.70.2.1, subnet6: 'fd70:2::/64' }
  store: { subnet: 10.70.3.0/24, gateway: 10.70.3.1, subnet6: 'fd70:3::/64' }
tiers:
  web:
    networks: [front]
    services:
      shop: { containers: [shop], ports: [tcp/80] }
  app:
    networks: [back]
    services:
      api:  { containers: [api], networks: [store], ports: [tcp/8000-8009] }
      cron: { containers: [cron] }
  data:
    networks: [store]
    services:
      db:    { containers: [db], ports: [tcp/5432] }
      cache: { containers: [cache], ports: [tcp/6379] }
  partner: { addresses: [203.0.113.0/24, '2001:db8:cafe::/48'] }
";

/// A rule of every kind.
const RULES: &str = "\
rules:
  - { name: users,     from: external,  to: web,      ports: [tcp/80, tcp/443] }
  - { name: shop-api,  from: web/shop,  to: app/api,  ports: app/api }
  - { name: app-data,  from: app,       to: data }
  - { name: no-cache,  from: app/cron,  to: data/cache, action: deny }
  - { name: no-ssh,    from: any,       to: data,     ports: [tcp/22], action: deny }
  - { name: pings,     from: internal,  to: internal, ports: [ping] }
  - { name: calls,     from: web,       to: app,      ports: [sctp/9003, proto/47] }
  - { name: watched,   from: web,       to: data,     ports: [udp/53], action: audit }
  - { name: over,      from: web,       to: data,     ports: [tcp/7777], expires: '2020-01-01T00:00:00Z' }
  - { name: partners,  from: partner,   to: web,      ports: [tcp/9443] }
  - { name: one-block, from: web,       to: { cidr: 203.0.113.0/24, except: [203.0.113.128/25] }, ports: [tcp/25] }
";

/// The whole policy.
pub fn policy() -> String {
    format!("version: 1\nname: sample\n{TIERS}{RULES}")
}
