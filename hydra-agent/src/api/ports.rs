//! `ports`: every published port, who can reach it by the policy, and what Docker alone would do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hydra_common::id::Identity;
use hydra_common::tables::PrefixRow;
use hydra_common::verdict::Verdict;

use super::App;
use super::explain::{End, binding};
use super::extract::{Asked, Refusal};
use super::filter::{Who, service};
use super::read::no_policy;
use super::view::{self, Names};
use super::wire::{PortFilter, PortRow};
use crate::policy::explain::Judge;
use crate::policy::ports::Packet;
use crate::policy::rows::Owner;
use crate::policy::unix_now;
use crate::published::{Applied, PortView, Published};

/// What neither end of is in the policy.
const NOT_JUDGED: &str = "not judged";

pub(super) async fn ports(
    State(app): State<Arc<App>>,
    Asked(filter): Asked<PortFilter>,
) -> Result<Json<Vec<PortRow>>, Refusal> {
    let state = app.state();
    rows(&state, &app.memory.names(&state), filter, unix_now()).map(Json)
}

fn rows(state: &Published, names: &Names, filter: PortFilter, now: i64) -> Result<Vec<PortRow>, Refusal> {
    let applied = state.applied.as_deref().ok_or_else(no_policy)?;
    let PortFilter { from, to, port, limit } = filter;
    let from = from.map(|text| End::find(state, applied, &text)).transpose()?;
    let to = to.map(|text| Who::find(state, names, text)).transpose()?;
    let (protocol, number) = port.as_deref().map_or(Ok((None, None)), service)?;
    let ask = Ask { applied, judge: Judge::new(&applied.compiled, now) };
    let chosen = state.ports.iter().filter(|view| {
        let owner = view.owner.as_ref();
        let tier = owner.map_or("unknown", Owner::tier);
        let service = owner.and_then(Owner::service).unwrap_or_default();
        let address = view.key.address.to_string();
        to.as_ref().is_none_or(|who| who.is([tier, service, &view.container, &address]))
            && protocol.as_deref().is_none_or(|p| p == view::protocol(view.key.protocol))
            && number.is_none_or(|n| n == view.key.port)
            && from.as_ref().is_none_or(|end| ask.reaches(end, view))
    });
    Ok(chosen.map(|view| ask.row(state, view)).take(limit.unwrap_or(usize::MAX)).collect())
}

struct Ask<'a> {
    applied: &'a Applied,
    judge: Judge<'a>,
}

impl Ask<'_> {
    fn row(&self, state: &Published, port: &PortView) -> PortRow {
        PortRow {
            address: port.key.address.to_string(),
            protocol: view::protocol(port.key.protocol),
            port: port.key.port,
            container: port.container.clone(),
            tier: port.owner.as_ref().map_or("unknown", Owner::tier).into(),
            service: port.owner.as_ref().and_then(Owner::service).unwrap_or_default().into(),
            network: port.network.clone(),
            target: port.target.map(|t| t.to_string()).unwrap_or_default(),
            target_port: port.target_port,
            identity: port.identity.0,
            external: self.reserved(&Owner::External, port).into(),
            blocks: self.blocks(port).join(", "),
            tiers: self.tiers(port).join(", "),
            unmanaged: self.reserved(&Owner::Unmanaged, port).into(),
            host: self.reserved(&Owner::Host, port).into(),
            docker: binding(&state.snapshot, port),
        }
    }

    /// What the kernel does with a flow from that identity. To a loopback address only this host has a way.
    fn verdict(&self, from: &Owner, identity: Identity, port: &PortView) -> Verdict {
        if port.key.address.is_loopback() && *from != Owner::Host {
            return Verdict::Denied;
        }
        self.judge.verdict(identity, port.identity, packet(port))
    }

    fn reserved(&self, from: &Owner, port: &PortView) -> &'static str {
        if port.owner.as_ref().is_some_and(|owner| !owner.declared()) {
            return NOT_JUDGED;
        }
        let identity = self.applied.compiled.identity(from, None).unwrap_or(Identity::UNKNOWN);
        self.verdict(from, identity, port).as_str()
    }

    /// Tiers of this host that can reach it; where a tier's services differ, each that can.
    fn tiers(&self, port: &PortView) -> Vec<String> {
        let mut out = Vec::new();
        for tier in self.applied.model.tiers.iter().filter(|t| t.is_internal()) {
            let verdict = |owner: &Owner| {
                let identity = self.applied.compiled.identity(owner, None).unwrap_or(Identity::UNKNOWN);
                self.verdict(owner, identity, port)
            };
            let whole = verdict(&Owner::Tier(tier.name.clone()));
            let service = |name: &str| Owner::Service { tier: tier.name.clone(), service: name.to_owned() };
            let services: BTreeMap<&str, Verdict> =
                tier.services.iter().map(|s| (s.name.as_str(), verdict(&service(&s.name)))).collect();
            if services.values().all(|v| *v == whole) {
                out.extend(passes(tier.name.clone(), whole));
                continue;
            }
            out.extend(passes(format!("{} without a service", tier.name), whole));
            out.extend(
                services.into_iter().filter_map(|(name, v)| passes(format!("{}/{name}", tier.name), v)),
            );
        }
        out
    }

    /// Blocks of tiers that live elsewhere, and blocks of rules, as far as they can reach it or the outside around them can.
    fn blocks(&self, port: &PortView) -> Vec<String> {
        if port.owner.as_ref().is_some_and(|owner| !owner.declared()) {
            return Vec::new();
        }
        let compiled = &self.applied.compiled;
        let outside = self.verdict(&Owner::External, Identity::EXTERNAL, port);
        let mut out = Vec::new();
        for (block, row) in &compiled.prefixes {
            let Some((class, _)) = compiled.identities.get(&row.identity) else { continue };
            let elsewhere = match &class.owner {
                Owner::External => row.identity != Identity::EXTERNAL,
                Owner::Tier(_) | Owner::Service { .. } => row.flags & PrefixRow::INTERIOR == 0,
                Owner::Host | Owner::Unmanaged | Owner::Shared(_) => false,
            };
            if !elsewhere || block.addr().is_ipv4() != port.key.address.is_ipv4() {
                continue;
            }
            let nobody = class.owner == Owner::External;
            let name = if nobody { block.to_string() } else { format!("{block} ({})", class.owner) };
            let verdict = self.verdict(&class.owner, row.identity, port);
            if verdict == Verdict::Denied && outside != Verdict::Denied {
                out.push(format!("not {name}"));
            } else if !nobody || verdict != outside {
                out.extend(passes(name, verdict));
            }
        }
        out
    }

    fn reaches(&self, from: &End<'_>, port: &PortView) -> bool {
        let reserved = [Some(&from.owner), port.owner.as_ref()].iter().flatten().all(|o| !o.declared());
        if port.owner.is_some() && reserved {
            return true;
        }
        let family = |ip: &IpAddr| ip.is_ipv4() == port.key.address.is_ipv4();
        let mut identities: Vec<Identity> =
            from.addresses.iter().filter(|(ip, _)| family(ip)).map(|(_, identity)| *identity).collect();
        if from.addresses.is_empty() {
            identities.push(from.identity);
        }
        identities.into_iter().any(|identity| self.verdict(&from.owner, identity, port) != Verdict::Denied)
    }
}

fn packet(port: &PortView) -> Packet {
    Packet { protocol: port.key.protocol, number: port.target_port }
}

fn passes(name: String, verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Allowed => Some(name),
        Verdict::Audited => Some(format!("{name} (audited)")),
        Verdict::Denied => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use hydra_common::id::Container;

    use super::*;
    use crate::placement::PortKey;
    use crate::policy::compile::{World, compile};
    use crate::policy::parse;
    use crate::policy::rows::Numbers;

    const POLICY: &str = "
version: 1
tiers:
  apps: { networks: [apps], services: { page: { containers: [page] }, admin: { containers: [admin] } } }
  infra: { networks: [infra] }
  databases: { networks: [databases] }
  inference: { addresses: [192.168.1.250/32, '2001:db8:1::/64'] }
rules:
  - { name: users, from: external, to: apps, ports: tcp/80 }
  - { name: bad, from: { cidr: 203.0.113.0/24 }, to: apps, action: deny }
  - { name: office, from: { cidr: 198.51.100.0/24 }, to: databases, ports: tcp/5432 }
  - { name: models, from: inference, to: databases }
  - { name: page, from: apps/page, to: databases, ports: tcp/5432 }
  - { name: watch, from: infra, to: databases, action: audit }
";

    fn applied(text: &str) -> Applied {
        let (model, _) = parse(text, "p.yaml").unwrap();
        let subnets = [("apps", "10.1.0.0/24"), ("infra", "10.2.0.0/24"), ("databases", "10.3.0.0/24")];
        let world = World {
            subnets: subnets.map(|(t, s)| (t.to_owned(), vec![(s.parse().unwrap(), false)])).into(),
            ..World::default()
        };
        let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
        Applied {
            revision: 1,
            generation: 1,
            text: text.into(),
            model: model.into(),
            compiled: compiled.into(),
        }
    }

    fn row(applied: &Applied, address: &str, owner: Option<Owner>, target_port: u16) -> PortRow {
        let target: IpAddr = "10.3.0.5".parse().unwrap();
        let identity = owner.as_ref().and_then(|o| applied.compiled.identity(o, Some(target)));
        let port = PortView {
            key: PortKey { address: address.parse().unwrap(), protocol: 6, port: 8080 },
            container: "c".into(),
            number: Container(1),
            owner,
            network: String::new(),
            target: Some(target),
            target_port,
            identity: identity.unwrap_or(Identity::UNKNOWN),
            proxied: false,
        };
        Ask { applied, judge: Judge::new(&applied.compiled, 0) }.row(&Published::default(), &port)
    }

    fn who(row: &PortRow) -> [&str; 5] {
        [&row.external, &row.blocks, &row.tiers, &row.unmanaged, &row.host]
    }

    #[test]
    fn each_source_has_the_policy_s_verdict_on_the_container_s_own_port() {
        let applied = applied(POLICY);
        let tier = |name: &str| Some(Owner::Tier(name.into()));
        assert_eq!(
            who(&row(&applied, "0.0.0.0", tier("apps"), 80)),
            ["allowed", "not 192.168.1.250/32 (inference), not 203.0.113.0/24", "apps", "denied", "allowed"]
        );
        assert_eq!(
            who(&row(&applied, "0.0.0.0", tier("apps"), 8080)),
            ["denied", "", "apps", "denied", "allowed"]
        );
        let databases = row(&applied, "0.0.0.0", tier("databases"), 5432);
        assert_eq!(
            who(&databases),
            [
                "denied",
                "192.168.1.250/32 (inference), 198.51.100.0/24",
                "apps/page, infra (audited), databases",
                "denied",
                "allowed"
            ]
        );
        let v6 = row(&applied, &Ipv6Addr::UNSPECIFIED.to_string(), tier("databases"), 5432);
        assert_eq!(v6.blocks, "2001:db8:1::/64 (inference)", "of its own family");
    }

    #[test]
    fn a_loopback_address_is_this_host_s_alone() {
        let applied = applied(POLICY);
        let row = row(&applied, "127.0.0.1", Some(Owner::Tier("apps".into())), 80);
        assert_eq!(who(&row), ["denied", "", "", "denied", "allowed"]);
    }

    #[test]
    fn nobody_reaches_what_leads_to_nobody_known() {
        let applied = applied(POLICY);
        let row = row(&applied, "0.0.0.0", None, 80);
        assert_eq!((row.tier.as_str(), row.identity), ("unknown", 0));
        assert_eq!(who(&row), ["denied", "", "", "denied", "denied"]);
    }

    #[test]
    fn between_what_the_policy_does_not_name_nothing_is_judged() {
        let applied = applied(POLICY);
        let row = row(&applied, "0.0.0.0", Some(Owner::Unmanaged), 80);
        assert_eq!(who(&row), ["not judged", "", "", "not judged", "not judged"]);
    }

    #[test]
    fn a_policy_that_is_only_audited_denies_nobody() {
        let applied = applied(&format!("mode: audit{POLICY}"));
        let row = row(&applied, "0.0.0.0", Some(Owner::Tier("databases".into())), 1);
        assert_eq!(row.external, "audited");
        assert!(row.tiers.contains("apps (audited)"), "{}", row.tiers);
    }
}
