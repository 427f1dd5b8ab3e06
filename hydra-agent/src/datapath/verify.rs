//! Looks whether the kernel still does what it was told: hooks, the flipped word, and the rows.

use hydra_common::names;

use super::sync::Datapath;
use crate::desired::Desired;
use crate::published::NotEnforced;

/// Rows that are compared at every look; larger policies at every sixteenth.
const FEW: usize = 100_000;

impl Datapath {
    /// What is not as the last [`Datapath::sync`] of `desired` left it. Anything found is mended by the next one.
    pub fn verify(&mut self, desired: &Desired) -> Vec<NotEnforced> {
        let mut wrong: Vec<NotEnforced> = desired
            .hooks
            .iter()
            .filter_map(|(ifindex, hook)| self.attacher.complaint(&self.programs, *ifindex, *hook))
            .collect();
        let tables = self.tables_differ();
        if !tables.is_empty() {
            self.doubt = true;
        }
        wrong.extend(tables.into_iter().map(|why| NotEnforced { what: "tables".to_owned(), why }));
        wrong.sort();
        wrong
    }

    fn tables_differ(&mut self) -> Vec<String> {
        self.looks = self.looks.wrapping_add(1);
        let mut wrong = Vec::new();
        let pin = self.pins.maps.join(names::GENERATION);
        if !pin.exists() {
            wrong
                .push(format!("the pin `{}` is gone: a restart would begin without a policy", pin.display()));
        }
        match self.store.generation() {
            Ok(found) if found == self.held.generation => {}
            Ok(found) => wrong.push(format!("the generation is {found} instead of {}", self.held.generation)),
            Err(e) => wrong.push(e.to_string()),
        }
        match self.store.endpoints.all() {
            Ok(rows)
                if rows.iter().copied().collect::<std::collections::BTreeMap<_, _>>()
                    == self.held.endpoints => {}
            Ok(_) => wrong.push("the rows of endpoints were changed by somebody else".to_owned()),
            Err(e) => wrong.push(format!("the rows of endpoints could not be read: {e}")),
        }
        match self.store.links.all() {
            Ok(rows)
                if rows.iter().copied().collect::<std::collections::BTreeMap<_, _>>() == self.held.links => {}
            Ok(_) => wrong.push("the rows of interfaces were changed by somebody else".to_owned()),
            Err(e) => wrong.push(format!("the rows of interfaces could not be read: {e}")),
        }
        match self.store.published.all() {
            Ok(rows)
                if rows.iter().copied().collect::<std::collections::BTreeMap<_, _>>()
                    == self.held.published => {}
            Ok(_) => wrong.push("the rows of published ports were changed by somebody else".to_owned()),
            Err(e) => wrong.push(format!("the rows of published ports could not be read: {e}")),
        }
        let bank = self.held.generation & 1;
        if let Some(policy) = &self.held.banks[bank as usize] {
            let rows = policy.cells.values().map(Vec::len).sum::<usize>() + policy.intervals.len();
            if rows <= FEW || self.looks.is_multiple_of(16) {
                wrong.extend(self.store.check(bank, policy).err().map(|e| e.to_string()));
            }
        }
        wrong
    }
}
