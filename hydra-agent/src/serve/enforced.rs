//! A policy as it is enforced on this host: what it was made from, for whom, and when it has to be made again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::diagnostic::Diagnostic;
use crate::placement::{Claims, LanHome, Placement};
use crate::policy::Known;
use crate::policy::compile::{CompileError, World, compile_after};
use crate::policy::model::Model;
use crate::policy::rows::{Compiled, Numbers, Owner};
use crate::policy::taken::{Basis, Made};
use crate::reconcile;

/// A policy that can be enforced.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub revision: u32,
    pub text: Arc<str>,
    pub model: Arc<Model>,
    pub claims: Claims,
    pub compiled: Arc<Compiled>,
    /// How its rows came about.
    pub basis: Arc<Basis>,
    /// What the next text can be read and tested from; none for one that was taken up.
    pub tested: Option<Tested>,
    /// What it was compiled for.
    pub world: World,
}

/// What was found of a policy without a host.
#[derive(Clone, Debug)]
pub(super) struct Tested {
    /// What reading it gave.
    pub warnings: Arc<[Diagnostic]>,
    /// When, in Unix seconds.
    pub now: i64,
    /// Its rows for no host, and how they came about.
    pub made: Arc<Made>,
}

impl Policy {
    /// For the next text.
    pub fn known(&self) -> Option<Known> {
        let Tested { warnings, now, .. } = self.tested.as_ref()?;
        Some(Known {
            text: self.text.clone(),
            model: self.model.clone(),
            warnings: warnings.clone(),
            now: *now,
        })
    }
}

/// The world for the compiler.
pub(super) fn world(placement: &Placement) -> World {
    let open = |block| placement.open.contains(block);
    World {
        subnets: placement
            .subnets
            .iter()
            .map(|(tier, blocks)| (tier.clone(), blocks.iter().map(|b| (*b, open(b))).collect()))
            .collect(),
        live: reconcile::homes(placement).filter(|(owner, _)| *owner != Owner::Host).collect(),
        host: placement.host.iter().copied().collect(),
        unmanaged: placement.unmanaged.iter().copied().collect(),
        lan: lan(placement),
    }
}

/// Networks without ports here, and who of this host is on them.
fn lan(placement: &Placement) -> BTreeMap<IpNet, Option<Owner>> {
    let mut out: BTreeMap<IpNet, Option<Owner>> = placement.lan_blocks.iter().map(|b| (*b, None)).collect();
    let declared = |home: &LanHome| home.owner.clone().filter(Owner::declared);
    out.extend(placement.lan.iter().filter_map(|h| Some((IpNet::from(h.address), Some(declared(h)?)))));
    out
}

/// A policy's rows for a placement, where those it has don't do: another world around it, or an address of a class that the matrix
/// lacks. Addresses that are gone are no reason.
pub(super) fn recompile(
    policy: &Policy,
    placement: &Placement,
    numbers: &Numbers,
) -> Result<Option<(Made, World, Numbers)>, CompileError> {
    let world = world(placement);
    let around = |w: &World| (w.subnets.clone(), w.unmanaged.clone(), w.host.clone(), w.lan.clone());
    if around(&world) == around(&policy.world) && reconcile::missing(&policy.compiled, placement).is_empty() {
        return Ok(None);
    }
    let mut numbers = numbers.clone();
    let made = compile_after(&policy.model, &world, &mut numbers, None)?;
    Ok(Some((made, world, numbers)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::snapshot::LinkType;
    use crate::placement::place;
    use crate::placement::tests::Scene;
    use crate::policy;
    use crate::state::Containers;

    const POLICY: &str = "version: 1\ntiers:\n  apps: { networks: [front] }\nrules: []\n";

    #[test]
    fn an_address_that_this_host_loses_is_a_reason_to_compile_again() {
        let mut scene = Scene::usual();
        scene.link(2, "eth0", LinkType::Other, None, ["198.51.100.5/24", "198.51.100.80/32"]);
        let (model, _) = policy::parse(POLICY, "t").unwrap();
        let claims = Claims::of(&model);
        let placed = |scene: &Scene| place(&claims, &scene.snapshot, false, &mut Containers::default());
        let world = world(&placed(&scene));
        let (compiled, basis) = compile_after(&model, &world, &mut Numbers::default(), None).unwrap();
        let policy = Policy {
            revision: 1,
            text: POLICY.into(),
            model: model.into(),
            claims: claims.clone(),
            compiled: compiled.into(),
            basis: basis.into(),
            tested: None,
            world,
        };
        let again = |scene: &Scene| recompile(&policy, &placed(scene), &Numbers::default()).unwrap();
        assert!(again(&scene).is_none());
        scene.link(2, "eth0", LinkType::Other, None, ["198.51.100.5/24"]);
        let ((compiled, _), ..) = again(&scene).expect("other tables");
        assert!(!compiled.prefixes.contains_key(&"198.51.100.80/32".parse().unwrap()));
    }
}
