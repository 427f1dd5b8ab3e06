//! Checks of `networks:` and `tiers:`: names, what a tier lives on, and what a service is made of.

use std::collections::BTreeMap;

use super::Checker;
use crate::cgroup::UNITS;
use crate::diagnostic::Place;
use crate::policy::file;
use crate::policy::model::{Model, Network, Service, Tier};
use crate::policy::ports::{self, Ports, Term};
use crate::policy::rows::Owner;
use crate::policy::shape::{At, List, Named};
use hydra_common::id::{Identity, MAX_IDENTITIES, MAX_TIERS, Tier as TierNumber};
use ipnet::IpNet;

/// The longest interface name in bytes (Linux, `IFNAMSIZ` less the NUL).
const INTERFACE_NAME: usize = 15;

impl Checker {
    pub(super) fn networks(&mut self, networks: Option<&Named<file::Network>>, model: &mut Model) {
        for (name, network) in networks.iter().flat_map(|n| &n.0) {
            self.docker_name("network", name);
            let made = network.as_ref().map(|n| self.network(n)).unwrap_or_default();
            model.networks.insert(name.value.clone(), made);
        }
    }

    fn network(&mut self, network: &file::Network) -> Network {
        let file::Network {
            place: _,
            subnet,
            subnet6,
            gateway,
            ip_range,
            internal,
            mtu,
            labels,
            options,
            external,
        } = network;
        if let Some(v6) = subnet6.as_ref().filter(|s| s.value.0.addr().is_ipv4()) {
            self.error(v6.place, "`subnet6` is an IPv4 block", Some("write it as `subnet`".to_owned()));
        }
        let both = [subnet, subnet6].into_iter().flatten().map(|s| s.value.0);
        let subnets: Vec<IpNet> = both.collect();
        if let (Some(a), Some(b)) = (subnet, subnet6)
            && !a.value.0.addr().is_ipv4()
        {
            let hint = "the IPv4 block is `subnet`, the IPv6 block `subnet6`".to_owned();
            let message = format!("`subnet` and `subnet6` are both IPv6: {} and {}", a.value.0, b.value.0);
            self.error(a.place, message, Some(hint));
        }
        if let Some(gateway) = gateway {
            let ip = gateway.value.0;
            match subnets.iter().find(|s| s.addr().is_ipv4() == ip.is_ipv4()) {
                Some(s) if !s.contains(&ip) => {
                    let message = format!("gateway `{ip}` is not in the subnet: {s}");
                    self.error(gateway.place, message, None);
                }
                Some(s)
                    if ip.is_ipv4() && s.prefix_len() < 31 && (ip == s.network() || ip == s.broadcast()) =>
                {
                    let message = format!("gateway `{ip}` is no address of a machine in {s}");
                    self.error(gateway.place, message, None);
                }
                Some(_) => {}
                None => self.error(gateway.place, format!("gateway `{ip}` has no subnet"), None),
            }
        }
        if let Some(range) = ip_range {
            let inside = subnets.iter().any(|s| s.contains(&range.value.0));
            if !inside {
                let message = format!("ip-range `{}` is not in the subnet", range.value.0);
                self.error(range.place, message, None);
            }
        }
        let texts = |named: &Option<Named<At<String>>>| -> BTreeMap<String, String> {
            let pairs = named.iter().flat_map(|n| &n.0);
            pairs.filter_map(|(k, v)| Some((k.value.clone(), v.as_ref()?.value.clone()))).collect()
        };
        Network {
            subnets,
            gateway: gateway.as_ref().map(|g| g.value.0),
            ip_range: ip_range.as_ref().map(|r| r.value.0),
            internal: internal.as_ref().is_some_and(|f| f.value.0),
            mtu: mtu.as_ref().map(|m| m.value.0),
            labels: texts(labels),
            options: texts(options),
            external: external.as_ref().is_some_and(|f| f.value.0),
        }
    }

    pub(super) fn tiers(&mut self, tiers: &Named<file::Tier>, place: Place, model: &mut Model) {
        for (index, (name, tier)) in tiers.0.iter().enumerate() {
            self.name("tier", name);
            let made = self.tier(index, name, tier.as_ref(), model);
            model.index.tiers.insert(name.value.clone(), index);
            model.index.places.insert(name.value.clone(), name.place);
            model.tiers.push(made);
        }
        if tiers.0.is_empty() {
            self.warn(place, "the policy has no tier: nothing is enforced", None);
        }
        self.capacity(tiers, model);
        self.attached(tiers, model);
    }

    /// More than the kernel's tables hold.
    fn capacity(&mut self, tiers: &Named<file::Tier>, model: &Model) {
        let most_tiers = (MAX_TIERS - u32::from(TierNumber::FIRST_DECLARED.0)) as usize;
        let most = (MAX_IDENTITIES - u32::from(Identity::FIRST_DECLARED.0)) as usize;
        let identities = model.tiers.len() + model.tiers.iter().map(|t| t.services.len()).sum::<usize>();
        let (message, count) = if model.tiers.len() > most_tiers {
            (format!("the policy has {} tiers, the tables hold {most_tiers}", model.tiers.len()), most_tiers)
        } else if identities > most {
            (format!("the policy has {identities} tiers and services, the tables hold {most}"), 0)
        } else {
            return;
        };
        if let Some((name, _)) = tiers.0.get(count) {
            self.error(name.place, message, None);
        }
    }

    fn tier(
        &mut self,
        index: usize,
        name: &At<String>,
        tier: Option<&file::Tier>,
        model: &mut Model,
    ) -> Tier {
        let mut made = Tier {
            name: name.value.clone(),
            description: None,
            networks: Vec::new(),
            bridges: Vec::new(),
            units: Vec::new(),
            subnets: Vec::new(),
            addresses: Vec::new(),
            audit: false,
            optional: false,
            services: Vec::new(),
        };
        let Some(file::Tier {
            place: _,
            description,
            networks,
            bridges,
            subnets,
            addresses,
            units,
            mode,
            optional,
            services,
        }) = tier
        else {
            return made;
        };
        made.description = description.as_ref().map(|d| d.value.clone());
        made.audit = mode.as_ref().is_some_and(|m| m.value == file::Mode::Audit);
        made.optional = optional.as_ref().is_some_and(|o| o.value.0);
        made.networks = self.once("network", networks.as_ref());
        for network in networks.iter().flat_map(|n| &n.items) {
            self.docker_name("network", network);
            if let Some(other) =
                model.index.networks.insert(network.value.clone(), index).filter(|o| *o != index)
            {
                let message = format!("network `{}` belongs to two tiers", network.value);
                let hint = format!("tier `{}` has it too", model.tiers[other].name);
                self.error(network.place, message, Some(hint));
            }
            if let Some(bridge) = model.networks.get(&network.value).and_then(Network::bridge) {
                let bridge = At { value: bridge.to_owned(), place: network.place };
                self.bridge(index, &bridge, model);
            }
        }
        made.bridges = self.once("bridge", bridges.as_ref());
        for bridge in bridges.iter().flat_map(|b| &b.items) {
            let text = &bridge.value;
            let bad = text.is_empty()
                || text.len() > INTERFACE_NAME
                || text == "."
                || text == ".."
                || text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
            if bad {
                self.error(bridge.place, format!("`{text}` is no name of an interface"), None);
            }
            self.bridge(index, bridge, model);
        }
        made.units = self.once("unit", units.as_ref());
        for unit in units.iter().flat_map(|u| &u.items) {
            self.unit(index, unit, model);
        }
        made.subnets = self.nets(subnets.as_ref());
        made.addresses = self.nets(addresses.as_ref());
        if let Some(subnets) = subnets.as_ref().filter(|_| !made.is_internal()) {
            let hint = "machines outside Docker are `addresses`".to_owned();
            let message = format!("tier `{}` has `subnets` without `networks` or `bridges`", name.value);
            self.error(subnets.place, message, Some(hint));
        }
        let names = |list: Option<&List<At<String>>>| list.is_some_and(|l| !l.empty);
        // A named container may live on this host's network.
        let named = |s: &Option<file::Service>| s.as_ref().is_some_and(|s| names(s.containers.as_ref()));
        let containers = services.iter().flat_map(|s| &s.0).any(|(_, s)| named(s));
        let nothing = !containers
            && !names(networks.as_ref())
            && !names(bridges.as_ref())
            && addresses.as_ref().is_none_or(|l| l.empty)
            && subnets.is_none()
            && !names(units.as_ref());
        if nothing && !made.optional {
            let message = format!("tier `{}` names no networks, bridges, addresses or units", name.value);
            self.warn(name.place, message, Some("say `optional: true` if that is meant".to_owned()));
        }
        for (service, shape) in services.iter().flat_map(|s| &s.0) {
            self.name("service", service);
            made.services.push(self.service(&name.value, service, shape.as_ref(), model));
        }
        made
    }

    fn bridge(&mut self, index: usize, bridge: &At<String>, model: &mut Model) {
        if let Some(other) = model.index.bridges.insert(bridge.value.clone(), index).filter(|o| *o != index) {
            let message = format!("bridge `{}` belongs to two tiers", bridge.value);
            let hint = format!("tier `{}` has it too", model.tiers[other].name);
            self.error(bridge.place, message, Some(hint));
        }
    }

    /// Names of units (systemd.unit(5)), of the kinds that have processes.
    fn unit(&mut self, index: usize, unit: &At<String>, model: &mut Model) {
        let text = &unit.value;
        let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let kind = UNITS.iter().any(|k| text.len() > k.len() && text.ends_with(k));
        if !kind || text.len() > 255 || !text.chars().all(good) {
            let plain = !text.is_empty() && !text.contains('.') && text.chars().all(good);
            let hint = plain.then(|| format!("write `{text}.service`"));
            self.error(unit.place, format!("`{text}` is no name of a unit"), hint);
        }
        if let Some(other) = model.index.units.insert(text.clone(), index).filter(|o| *o != index) {
            let hint = format!("tier `{}` has it too", model.tiers[other].name);
            self.error(unit.place, format!("unit `{text}` belongs to two tiers"), Some(hint));
        }
    }

    fn service(
        &mut self,
        tier: &str,
        name: &At<String>,
        service: Option<&file::Service>,
        model: &mut Model,
    ) -> Service {
        let mut made = Service {
            name: name.value.clone(),
            containers: Vec::new(),
            addresses: Vec::new(),
            ports: None,
            port_texts: Vec::new(),
            networks: Vec::new(),
        };
        let Some(file::Service { place: _, containers, addresses, ports, networks }) = service else {
            return made;
        };
        let owner = Owner::Service { tier: tier.to_owned(), service: name.value.clone() };
        for container in containers.iter().flat_map(|c| &c.items) {
            self.docker_name("container", container);
            let text = &container.value;
            match model.index.containers.insert(text.clone(), owner.clone()) {
                Some(other) if other == owner => {
                    self.error(container.place, format!("container `{text}` is there twice"), None);
                }
                Some(other) => {
                    let message = format!("container `{text}` is in two services");
                    self.error(container.place, message, Some(format!("service `{other}` has it too")));
                }
                None => made.containers.push(text.clone()),
            }
        }
        made.addresses = self.nets(addresses.as_ref());
        if let Some(list) = ports {
            made.port_texts = list.items.iter().map(|p| p.value.0.clone()).collect();
            made.ports = self.service_ports(&name.value, list);
        }
        made.networks = self.once("network", networks.as_ref());
        if made.containers.is_empty() && made.addresses.is_empty() {
            let hint = "give it `containers` or `addresses`".to_owned();
            self.warn(name.place, format!("service `{tier}/{}` names nothing", name.value), Some(hint));
        }
        made
    }

    fn service_ports(&mut self, service: &str, list: &List<At<file::Port>>) -> Option<Ports> {
        let mut ranges = Vec::new();
        for port in &list.items {
            match ports::parse(&port.value.0) {
                Ok(Term::Ranges(r)) => ranges.extend(r),
                Ok(Term::Service(other)) => {
                    let message = format!("`{other}` is no port");
                    let hint = "the ports of a service are written out, as in `tcp/5432`".to_owned();
                    self.error(port.place, message, Some(hint));
                }
                Err(refusal) => self.error(port.place, refusal.message, refusal.hint),
            }
        }
        if list.empty {
            let message = format!("`ports` of service `{service}` is empty");
            self.error(list.place, message, Some("leave it out, or write `tcp/5432`".to_owned()));
        }
        (!ranges.is_empty()).then(|| Ports::of(ranges))
    }

    /// Networks that services are attached to must be known: by `networks:` or by a tier.
    fn attached(&mut self, tiers: &Named<file::Tier>, model: &Model) {
        let services = tiers.0.iter().filter_map(|(_, t)| t.as_ref()?.services.as_ref()).flat_map(|s| &s.0);
        let lists = services.filter_map(|(_, s)| s.as_ref()?.networks.as_ref());
        for network in lists.flat_map(|l| &l.items) {
            let name = network.value.as_str();
            if !model.networks.contains_key(name) && !model.index.networks.contains_key(name) {
                let known = model.networks.keys().chain(model.index.networks.keys()).map(String::as_str);
                self.unknown(network.place, "network", name, known);
            }
        }
    }

    /// The names of a list, each of which should be there once.
    fn once(&mut self, what: &str, list: Option<&List<At<String>>>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in list.iter().flat_map(|l| &l.items) {
            if names.contains(&name.value) {
                self.error(name.place, format!("{what} `{}` is there twice", name.value), None);
            } else {
                names.push(name.value.clone());
            }
        }
        names
    }

    fn nets(&mut self, list: Option<&List<At<file::Cidr>>>) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = Vec::new();
        for net in list.iter().flat_map(|l| &l.items) {
            if nets.contains(&net.value.0) {
                self.error(net.place, format!("block `{}` is there twice", net.value.0), None);
            } else {
                nets.push(net.value.0);
            }
        }
        nets
    }

    /// Names that Docker gives: it takes letters, digits, `_`, `.` and `-`.
    fn docker_name(&mut self, what: &str, name: &At<String>) {
        let text = &name.value;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !first || text.len() > 255 || !text.chars().all(good) {
            let hint = text.strip_prefix('/').map(|rest| format!("write `{rest}`"));
            self.error(name.place, format!("`{text}` is no name of a {what}"), hint);
        }
    }
}
