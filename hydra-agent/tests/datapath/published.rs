//! Rows of published ports, and the programs where their clients come in.

use aya::maps::HashMap;
use hydra_agent::desired::Publish;
use hydra_common::id::{Container, Identity};
use hydra_common::names;
use hydra_common::tables::{self, PublishKey};
use hydra_common::verdict::Hook;
use std::path::Path;

use crate::support::*;

fn key(port: u16) -> PublishKey {
    PublishKey { address: address("0.0.0.0"), port: port.to_be_bytes(), protocol: 6, ..PublishKey::default() }
}

fn row(bpffs: &Path, port: u16) -> Option<tables::Publish> {
    HashMap::<_, PublishKey, tables::Publish>::try_from(map(bpffs, names::PUBLISHED))
        .unwrap()
        .get(&key(port), 0)
        .ok()
}

const WEB: Publish = Publish { identity: APPS, container: Container(1), port: 80, flags: 0 };

#[test]
fn a_published_port_is_a_row_from_the_flip_on_and_no_longer_than_it_is_bound() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        assert_eq!(row(bpffs, 8080), None);

        desired.published.insert(key(8080), WEB);
        let report = datapath.sync(&desired).unwrap();
        assert!(report.flipped, "it was this host's own before");
        let bank = (generation(bpffs) & 1) as usize;
        let written = row(bpffs, 8080).unwrap();
        assert_eq!((written.identity[bank], written.container, written.port), (APPS, Container(1), 80));
        assert_eq!(datapath.verify(&desired), Vec::new());
        assert!(!datapath.sync(&desired).unwrap().flipped, "nothing is new");

        desired.published.insert(key(8080), Publish { identity: DATABASES, container: Container(2), ..WEB });
        let report = datapath.sync(&desired).unwrap();
        assert!(report.flipped, "another container");
        let (now, before) = ((generation(bpffs) & 1) as usize, bank);
        let written = row(bpffs, 8080).unwrap();
        assert_eq!(written.identity[now], DATABASES);
        assert_eq!(written.identity[before], Identity::UNKNOWN, "nobody had this right before the flip");

        desired.published.clear();
        let report = datapath.sync(&desired).unwrap();
        assert!(report.flipped, "a right goes");
        assert_eq!(row(bpffs, 8080), None);
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
}

#[test]
fn rows_that_somebody_else_changed_are_noticed_and_mended_and_survive_the_agent() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        desired.published.insert(key(8080), WEB);
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let written = row(bpffs, 8080).unwrap();
        drop(datapath);
        let mut datapath = open(bpffs);
        assert_eq!(datapath.held().published.get(&key(8080)), Some(&written));
        assert!(!datapath.sync(&desired).unwrap().flipped, "a restart changes nothing");

        let mut there =
            HashMap::<_, PublishKey, tables::Publish>::try_from(map(bpffs, names::PUBLISHED)).unwrap();
        there.insert(key(8081), written, 0).unwrap();
        there.remove(&key(8080)).unwrap();
        let wrong = datapath.verify(&desired);
        assert!(
            wrong.iter().any(|n| n.why == "the rows of published ports were changed by somebody else"),
            "{wrong:?}"
        );
        datapath.sync(&desired).unwrap();
        assert_eq!(row(bpffs, 8080).map(|r| r.port), Some(80));
        assert_eq!(row(bpffs, 8081), None);
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
}

#[test]
fn an_uplink_has_its_program_first_and_says_where_it_has_not() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let up = veth("hyup");
        desired.hooks.insert((up, Hook::UplinkIn));
        desired.hooks.insert((4_001, Hook::UplinkIn));
        let mut datapath = open(bpffs);
        let report = datapath.sync(&desired).unwrap();
        let seat = report.hooks.iter().find(|h| h.ifindex == up).unwrap();
        assert_eq!((seat.interface.as_str(), seat.hook.as_str(), seat.position), ("hyup", "uplink-in", 0));
        let [missing] = report.not_enforced.as_slice() else { panic!("{:?}", report.not_enforced) };
        assert!(missing.what == "#4001" && missing.why.starts_with("uplink-in could not be attached: "));
        desired.hooks.remove(&(4_001, Hook::UplinkIn));
        desired.hooks.remove(&(up, Hook::UplinkIn));
        assert_eq!(datapath.sync(&desired).unwrap().detached, [(up, Hook::UplinkIn)]);
    });
}
