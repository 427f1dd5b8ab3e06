//! Numbers keep the names that they had when they were given.

use super::*;
use crate::policy::compile::{World as Known, compile};
use crate::policy::parse;
use crate::policy::rows::Numbers;
use crate::published::Applied;

fn applied(revision: u32, rules: &str, numbers: &mut Numbers) -> Arc<Applied> {
    let text = format!(
        "version: 1\ntiers: {{ a: {{ networks: [a] }}, b: {{ networks: [b] }} }}\nrules: [{rules}]\n"
    );
    let (model, _) = parse(&text, "p.yaml").unwrap();
    let compiled = compile(&model, &Known::default(), numbers).unwrap();
    Arc::new(Applied {
        revision,
        generation: revision,
        text: text.into(),
        model: model.into(),
        compiled: Arc::new(compiled),
    })
}

#[tokio::test]
async fn a_rule_keeps_its_name_after_the_policy_that_had_it() {
    let mut numbers = Numbers::default();
    let old = applied(
        1,
        "{ name: web, from: a, to: b, ports: tcp/80 }, { name: shut, from: a, to: b, action: deny }",
        &mut numbers,
    );
    let new = applied(
        2,
        "{ name: other, from: b, to: a, action: deny }, { name: more, from: b, to: a, ports: tcp/1, action: deny }",
        &mut numbers,
    );
    let tier = |name: &str| *old.compiled.tiers.iter().find(|(_, n)| *n == name).unwrap().0;
    let key = DropKey {
        source: tier("a"),
        destination: tier("b"),
        reason: Reason::Rule as u8,
        verdict: Verdict::Denied as u8,
        rule: 2,
    };
    let tables = Arc::new(Memory::default());
    tables.counters.lock().unwrap().drops.insert(key, Count { packets: 5, bytes: 500 });
    let published =
        |applied: &Arc<Applied>| Published { applied: Some(applied.clone()), ..Published::default() };
    let world = World::over(published(&old), tables.clone());

    let (from, to) = (identity(&old, "a"), identity(&old, "b"));
    let dropped = Event {
        source_identity: from,
        destination_identity: to,
        revision: 1,
        rule: 2,
        reason: Reason::Rule as u8,
        ..event("172.30.4.20", 80, Verdict::Denied)
    };
    while world.events.receiver_count() < 1 {
        tokio::task::yield_now().await;
    }
    world.events.send(dropped).unwrap();
    let totals = world.get("/v1/drops/totals").await;
    assert_eq!((&totals[0]["rule"], &totals[0]["packets"]), (&json!("shut"), &json!(5)));

    world.state.send(Arc::new(published(&new))).unwrap();
    // The counters go on under the new policy once the API has closed the old one's account.
    loop {
        let totals = world.get("/v1/drops/totals").await;
        if totals[0]["rule"] == "shut" {
            break;
        }
    }
    tables.counters.lock().unwrap().drops.insert(key, Count { packets: 8, bytes: 800 });
    assert_eq!(
        world.get("/v1/drops/totals").await,
        json!([
            { "source_tier": "a", "destination_tier": "b", "verdict": "denied", "reason": "rule", "rule": "shut",
              "packets": 5, "bytes": 500 },
            { "source_tier": "a", "destination_tier": "b", "verdict": "denied", "reason": "rule", "rule": "more",
              "packets": 3, "bytes": 300 },
        ])
    );
    let drops = world.drops(1).await;
    assert_eq!((&drops[0]["rule"], &drops[0]["revision"]), (&json!("shut"), &json!(1)));
    assert_eq!((&drops[0]["source_tier"], &drops[0]["destination_tier"]), (&json!("a"), &json!("b")));
    world.end().await;
}

fn identity(applied: &Applied, tier: &str) -> Identity {
    applied.compiled.identity(&Owner::Tier(tier.into()), None).unwrap()
}

#[tokio::test]
async fn a_limits_counter_stays_with_its_rules_name() {
    let mut numbers = Numbers::default();
    let rule = "{ name: login, from: a, to: b, limit: 60/min }";
    let old = applied(1, rule, &mut numbers);
    let before = "{ name: api, from: b, to: a, limit: 5/s }, { name: free, from: a, to: b, ports: tcp/1 }, ";
    let new = applied(2, &format!("{before}{rule}"), &mut numbers);
    let bucket = old.compiled.limits[0].bucket as usize;
    let mut limited = vec![0; 4_096];
    limited[bucket] = 9;
    let (api, login) =
        ("hydra_limit_denied_total{rule=\"api\"} 0", "hydra_limit_denied_total{rule=\"login\"} 9");
    for (policy, expected) in [(old, vec![login]), (new, vec![api, login])] {
        let counters = Counters { limited: limited.clone(), ..Counters::default() };
        let published = Published { applied: Some(policy), ..Published::default() };
        let world = World::start(published, Memory { counters: Mutex::new(counters), ..Memory::default() });
        let app = world.app();
        let text = metrics::scrape(&app).await.unwrap();
        let series: Vec<&str> = text.lines().filter(|l| l.starts_with("hydra_limit_denied_total")).collect();
        assert_eq!(series, expected);
        world.end().await;
    }
}
