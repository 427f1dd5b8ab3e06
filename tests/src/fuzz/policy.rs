//! Any bytes as a policy's text: refused or accepted, and what is accepted can be compiled, shown and compared.

use hydra_agent::policy::compile::{World, compile};
use hydra_agent::policy::rows::Numbers;
use hydra_agent::policy::{diff, parse_at, parse_bytes, yaml};
use hydra_common::tables::MAX_CHAIN;

/// A moment before every `expires` of the seeds.
const NOW: i64 = 1_800_000_000;

/// See the module.
///
/// # Panics
/// Where something does not hold.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = yaml::utf8(bytes) else {
        let problems = parse_bytes(bytes, "policy.yaml").expect_err("bytes that are no text are accepted");
        assert!(problems.has_errors() && !problems.render(false).is_empty());
        return;
    };
    let lines = text.lines().count().max(1) as u32 + 1;
    match parse_at(text, "policy.yaml", NOW) {
        Err(problems) => {
            assert!(problems.has_errors(), "refused without an error");
            for problem in &problems {
                assert!(!problem.message.is_empty());
                let place = problem.place.unwrap_or_default();
                assert!(place.line <= lines, "{}: line {} of {lines}", problem.message, place.line);
            }
            assert!(!problems.render(false).is_empty());
        }
        Ok((model, warnings)) => {
            assert!(!warnings.has_errors());
            let _ = warnings.render(false);
            let compiled =
                compile(&model, &World::default(), &mut Numbers::default()).expect("it was compiled before");
            let again =
                compile(&model, &World::default(), &mut Numbers::default()).expect("it was compiled before");
            assert_eq!(compiled, again, "two of one policy");
            assert!(diff::diff(Some(&model), &model, NOW).expect("it compiles").is_empty());
            serde_json::to_string(&model).expect("a policy can be shown");
            chains_end(&compiled);
        }
    }
}

/// No decision leads in a circle, out of the table, or further than the kernel follows.
fn chains_end(compiled: &hydra_agent::policy::rows::Compiled) {
    let mut steps: Vec<u32> = Vec::with_capacity(compiled.decisions.len());
    for (index, (row, end)) in compiled.decisions.iter().enumerate() {
        let leads = [(end.is_some(), row.next), (row.limit != 0, row.spent)];
        let behind = leads.iter().filter(|(leads, _)| *leads).map(|(_, to)| {
            assert!((*to as usize) < index, "decision {index} leads to {to}");
            steps[*to as usize]
        });
        let most = behind.max().map_or(1, |most| most + 1);
        assert!(most <= MAX_CHAIN, "a chain of {most}");
        assert!(row.limit as usize <= compiled.limits.len());
        steps.push(most);
    }
}
