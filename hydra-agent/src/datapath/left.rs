//! What hydra has on the interfaces of this host, whoever put it there and wherever it is pinned: what a purge with the wrong
//! directories leaves.

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use hydra_common::verdict::Hook;
use nix::net::if_::if_nameindex;

use super::clsact;

/// What all names of its programs begin with.
const PREFIX: &str = "hydra_";

/// Interfaces of this network namespace with programs of hydra, by name.
pub fn attached() -> Vec<String> {
    let Ok(interfaces) = if_nameindex() else { return Vec::new() };
    let mut found = Vec::new();
    for interface in &interfaces {
        let name = interface.name().to_string_lossy().into_owned();
        let tcx = |side| {
            let chain = SchedClassifier::query_tcx(name.as_str(), side).map(|(_, chain)| chain);
            chain.is_ok_and(|all| all.iter().any(|p| p.name_as_str().is_some_and(|n| n.starts_with(PREFIX))))
        };
        let filter = |hook| matches!(clsact::seat(interface.index(), hook), Ok(Some(_)));
        if tcx(TcAttachType::Ingress) || tcx(TcAttachType::Egress) || Hook::INTERFACES.into_iter().any(filter)
        {
            found.push(name);
        }
    }
    found
}
