//! Stacks with more than one claim on them.

use crate::inventory::snapshot::Stack;
use crate::placement::tests::{Scene, owners, pairs, remarks};
use crate::placement::{LABEL, Placement};
use crate::policy::file::{Multihome, SharedStack};
use crate::state::Containers;

fn label(stack: &mut Stack, member: &str, to: &str) {
    stack.labels.entry(member.into()).or_default().insert(LABEL.into(), to.into());
}

fn with_labels(s: &Scene) -> Placement {
    s.place_with(&mut Containers::default(), true)
}

/// The interface indexes of ports that belong to nobody.
fn closed_ports(p: &Placement) -> Vec<u32> {
    p.ports.iter().filter(|(_, port)| port.stack.is_none()).map(|(index, _)| *index).collect()
}

#[test]
fn labels_place_only_where_they_may_and_never_over_a_name() {
    let mut s = Scene::usual();
    label(s.container("x", &[(101, 10, "front", &["10.1.0.5"])]), "x", "databases/postgres");
    label(s.container("pg", &[(102, 20, "back", &["10.2.0.5"])]), "pg", "apps");
    assert_eq!(owners(&s.place())[0], ("10.1.0.5".into(), "apps".into()));
    let p = with_labels(&s);
    assert_eq!(owners(&p), pairs([("10.1.0.5", "databases/postgres"), ("10.2.0.5", "databases/postgres")]));
    assert_eq!(remarks(&p.closed), [""; 0]);
}

#[test]
fn a_label_that_names_nothing_closes_its_container_and_is_told_in_a_line() {
    // With a line's end, of letters that only look alike, reserved, of another form, and as long as Docker lets it be.
    let long = "databases".repeat(7_000);
    for wrong in [
        "no\nsuch",
        "d\u{430}tabases",
        "host",
        "external",
        "unmanaged",
        "any",
        "Databases",
        "databases ",
        "",
        &long,
    ] {
        let mut s = Scene::usual();
        label(s.container("y", &[(103, 10, "front", &["10.1.0.6"])]), "y", wrong);
        assert_eq!(
            owners(&s.place()),
            pairs([("10.1.0.6", "apps")]),
            "without the setting it is only a label"
        );
        let p = with_labels(&s);
        assert_eq!(
            (owners(&p), closed_ports(&p)),
            (Vec::new(), vec![103]),
            "{}",
            &wrong[..wrong.len().min(20)]
        );
        let [said] = remarks(&p.closed).try_into().unwrap();
        assert!(
            said.starts_with("`y`: the label `hydra.tier` of `y` names no tier or service of the policy"),
            "{said}"
        );
        assert!(said.len() < 600 && !said.contains('\n'), "{said}");
    }
}

#[test]
fn a_container_on_networks_of_two_tiers_is_what_the_policy_says() {
    let mut s = Scene::usual();
    s.container("both", &[(103, 20, "back", &["10.2.0.6"]), (104, 10, "front", &["10.1.0.6"])]);
    s.container("one", &[(105, 10, "front", &["10.1.0.7"])]);
    // A name makes it one thing everywhere.
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"]), (102, 10, "front", &["10.1.0.5"])]);
    let named = [("10.1.0.5", "databases/postgres"), ("10.2.0.5", "databases/postgres")];
    let open =
        pairs([named[0], ("10.1.0.6", "apps"), ("10.1.0.7", "apps"), named[1], ("10.2.0.6", "databases")]);
    let said = |p: &Placement| (remarks(&p.warnings), remarks(&p.closed));

    s.claims.multihome = Multihome::Allow;
    let p = s.place();
    assert_eq!((owners(&p), said(&p)), (open.clone(), (vec![], vec![])));

    s.claims.multihome = Multihome::Warn;
    let p = s.place();
    let warning =
        "`both`: on networks of `apps` and `databases`: whoever controls it can carry traffic between them";
    assert_eq!((owners(&p), said(&p)), (open.clone(), (vec![warning.to_owned()], vec![])));
    assert_eq!(p.warnings[0].hint, "name `both` in a service, or take it off all but one");

    s.claims.multihome = Multihome::Deny;
    let p = s.place();
    let why = "`both`: on networks of `apps` and `databases`: `multihome: deny` closes its ports";
    assert_eq!(owners(&p), pairs([named[0], ("10.1.0.7", "apps"), named[1]]));
    assert_eq!((said(&p), closed_ports(&p)), ((vec![], vec![why.to_owned()]), vec![103, 104]));
    assert!(p.stacks.iter().all(|stack| stack.name != "both"));

    // Off one of them it is open again.
    s.snapshot.stacks[0].attachments.remove(1);
    s.snapshot.links.remove(&104);
    let p = s.place();
    assert_eq!((said(&p), closed_ports(&p)), ((vec![], vec![]), vec![]));
    assert_eq!(owners(&p).last(), Some(&("10.2.0.6".to_owned(), "databases".to_owned())));
}

#[test]
fn a_network_that_the_policy_does_not_name_counts_as_a_tier_of_its_own() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("both", &[(103, 20, "back", &["10.2.0.6"]), (104, 30, "bridge", &["172.17.0.6"])]);
    s.container("other", &[(105, 30, "bridge", &["172.17.0.7"])]);
    assert_eq!(
        remarks(&s.place().warnings),
        [
            "`both`: on networks of `databases` and `unmanaged`: whoever controls it can carry traffic between them"
        ]
    );
    s.claims.multihome = Multihome::Deny;
    let p = s.place();
    assert_eq!((owners(&p), closed_ports(&p)), (pairs([("172.17.0.7", "unmanaged")]), vec![103, 104]));
}

#[test]
fn members_of_one_service_share_its_identity_with_those_that_nobody_names() {
    let mut s = Scene::usual();
    s.service("databases", "pair", ["a", "b"]);
    let stack = s.container("a", &[(101, 20, "back", &["10.2.0.5"])]);
    stack.members.extend(["b".into(), "sidecar".into()]);
    let p = s.place();
    assert_eq!((owners(&p), remarks(&p.closed)), (pairs([("10.2.0.5", "databases/pair")]), vec![]));
    // Whoever the owner of the stack is.
    let mut s = Scene::usual();
    s.container("vpn", &[(101, 20, "back", &["10.2.0.5"])]).members.push("pg".into());
    assert_eq!(owners(&s.place()), pairs([("10.2.0.5", "databases/postgres")]));
}

#[test]
fn members_of_two_services_close_their_stack_or_have_what_both_have() {
    let mut s = Scene::usual();
    s.service("apps", "torrent", ["torrent"]);
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]).members.push("torrent".into());
    let p = s.place();
    let who = "`pg` of `databases/postgres` and `torrent` of `apps/torrent` share one network stack";
    assert_eq!(remarks(&p.closed), [format!("`pg`: {who}: `shared-stack: refuse` closes its ports")]);
    assert_eq!((owners(&p), closed_ports(&p)), (Vec::new(), vec![101]));

    s.claims.shared_stack = SharedStack::Restrict;
    let p = s.place();
    assert_eq!(owners(&p), pairs([("10.2.0.5", "apps/torrent+databases/postgres")]));
    assert_eq!((closed_ports(&p), remarks(&p.closed)), (vec![], vec![]));
    assert!(remarks(&p.warnings).contains(&format!("`pg`: {who}: it may do only what each of them may do")));
}

#[test]
fn a_guests_label_counts_like_its_owners() {
    let mut s = Scene::usual();
    let stack = s.container("x", &[(101, 10, "front", &["10.1.0.5"])]);
    stack.members.push("guest".into());
    label(stack, "guest", "databases");
    assert_eq!(owners(&with_labels(&s)), pairs([("10.1.0.5", "databases")]));
    label(&mut s.snapshot.stacks[0], "x", "apps");
    assert_eq!(
        remarks(&with_labels(&s).closed),
        [
            "`x`: `x` of `apps` and `guest` of `databases` share one network stack: `shared-stack: refuse` closes its ports"
        ]
    );
    s.claims.shared_stack = SharedStack::Restrict;
    assert_eq!(owners(&with_labels(&s)), pairs([("10.1.0.5", "apps+databases")]));
    assert_eq!(owners(&s.place()), pairs([("10.1.0.5", "apps")]), "without the setting they are only labels");
}
