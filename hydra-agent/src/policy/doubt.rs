//! What a rule that could not be read may have meant, so that `expect` rows which fail whatever it meant are reported beside it.

use hydra_common::id::Identity;

use super::compile::{group_numbers, select};
use super::expect::Outcome;
use super::explain::identity_of;
use super::file::{Action, Answer};
use super::model::{Expect, Model, Selector};
use super::ports::Ports;
use super::precedence::line;
use super::rows::{Class, Compiled};

/// A rule with an error. What is `None` may be anything.
#[derive(Clone, Debug)]
pub struct Doubt {
    /// Who opens the flow.
    pub from: Option<Vec<Selector>>,
    /// Who is called.
    pub to: Option<Vec<Selector>>,
    /// On which ports.
    pub ports: Option<Ports>,
    /// What it does.
    pub action: Option<Action>,
}

impl Doubt {
    /// Whether a failing row could hold if the rule had been read.
    pub fn could_mend(&self, model: &Model, compiled: &Compiled, row: &Expect, outcome: &Outcome) -> bool {
        let ends = has(model, compiled, self.from.as_deref(), identity_of(compiled, &row.from))
            && has(model, compiled, self.to.as_deref(), identity_of(compiled, &row.to));
        let ports = self.ports.as_ref().is_none_or(|p| row.packets.iter().any(|q| p.contains(q.selector())));
        ends && ports && self.decides(model, row, outcome)
    }

    /// Whether its action would give what the row wants, on a line that comes before the one that decided.
    fn decides(&self, model: &Model, row: &Expect, outcome: &Outcome) -> bool {
        let rule = model.rules.iter().find(|r| r.name == outcome.rule);
        let decided = rule.map_or(7, |r| line(r.action));
        [Action::Allow, Action::Deny, Action::Audit].into_iter().any(|action| {
            let gives = match action {
                Action::Allow => row.verdict == Answer::Allowed,
                Action::Deny => row.verdict == Answer::Denied || model.audit,
                Action::Audit => row.verdict == Answer::Audited,
            };
            self.action.is_none_or(|a| a == action) && gives && line(action) <= decided
        })
    }
}

/// Whether one of the selectors, if they are known, means this end of a question.
fn has(model: &Model, compiled: &Compiled, selectors: Option<&[Selector]>, end: Identity) -> bool {
    let Some(selectors) = selectors else { return true };
    let classes: Vec<Class> = compiled.identities.get(&end).map(|(c, _)| c.clone()).into_iter().collect();
    // A block that only this rule names is in no class.
    let block = |s: &Selector| matches!(s, Selector::Block(_));
    let groups = group_numbers(&compiled.blocks);
    selectors.iter().any(|s| block(s) || !select(model, &classes, &groups, s).is_empty())
}
