//! Rows that a CPU keeps near count only as long as the agent has written no others.

use hydra_common::address::{Address, Mac};
use hydra_common::id::Identity;
use hydra_common::share::Word;
use hydra_common::tables::Publish;
use hydra_common::track::protocol;
use hydra_common::verdict::{Hook, Reason};
use hydra_tests::kernel::{NEXT, Runner, SHOT, Shot};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use std::net::{IpAddr, Ipv4Addr};

use crate::support::*;

/// Each CPU has its own. The thread ends with the test.
fn on_one_cpu() {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| all.is_set(*cpu) == Ok(true)).unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

#[test]
fn a_row_that_was_written_counts_at_once() {
    stage(room(1_024, 25), |stage, runner| {
        on_one_cpu();
        let calls = Calls::new(stage, "cron", "cache");
        assert!(calls.there.udp(runner, (40_000, 53)) && calls.there.udp(runner, (40_001, 53)));
        let before = runner.word(Word::Rows).unwrap();
        let mut moved = stage.desired.clone();
        moved.links.get_mut(&stage.port("cron", 0).unwrap()).unwrap().mac = Mac([2, 0, 0, 0, 0, 99]);
        runner.sync(&moved).unwrap();
        let now = runner.word(Word::Rows).unwrap();
        assert_ne!(now, before);

        // The control: without that word the port's old row, with the frame's MAC, is still near.
        let mut words = words(stage);
        words.set(Word::Rows as u32, before, 0).unwrap();
        assert!(calls.there.udp(runner, (40_002, 53)), "nothing is kept");
        words.set(Word::Rows as u32, now, 0).unwrap();
        assert!(!calls.there.udp(runner, (40_003, 53)), "the MAC is another's now");
        runner.sync(&stage.desired).unwrap();
        assert!(calls.there.udp(runner, (40_004, 53)), "and its own again");
    });
}

#[test]
fn what_has_passed_an_uplink_unseen_counts_for_its_like_alone_and_until_something_is_written() {
    stage(room(1_024, 25), |stage, runner| {
        on_one_cpu();
        let uplink = stage.link("hyup0").unwrap();
        let bindings =
            [("0.0.0.0", 8081, 0), ("0.0.0.0", 9105, Publish::PROXIED), ("::", 8081, Publish::PROXIED)];
        for (binding, port, flags) in bindings {
            let row =
                stage.published(binding.parse().unwrap(), protocol::TCP, port, ("db", 5432), flags).unwrap();
            runner.publish(&row.0, &row.1).unwrap();
        }
        let addresses = stage.deployment.topology.addresses("host");
        let own = |v6| *addresses.iter().find(|a| a.is_ipv6() == v6).unwrap();
        let user: IpAddr = "198.51.100.77".parse().unwrap();
        let frame = |from: IpAddr, transport| {
            let packet = Packet::new(from, own(from.is_ipv6()), transport);
            Frame::ip([2, 0, 0, 0, 0, 99], [2, 0, 0, 0, 0, 98], &packet).bytes()
        };
        let shot = |frame| Shot { hook: Hook::UplinkIn, ifindex: uplink, ingress: uplink, mark: 0, frame };
        let tcp = |from, flags| shot(frame(from, Transport::Tcp(40_000, 8081, flags, Vec::new())));
        let udp = shot(frame(user, Transport::Udp(40_000, 8081, Vec::new())));
        let row = stage.published("0.0.0.0".parse().unwrap(), protocol::UDP, 8081, ("db", 53), 0).unwrap();
        runner.publish(&row.0, &row.1).unwrap();
        let ends = |runner: &mut Runner, shot: &Shot| {
            let seen = runner.run(shot).unwrap();
            (seen.action, seen.reason)
        };
        let unseen = (NEXT, None);
        for flags in [flags::ACK, flags::FIN | flags::ACK, flags::RST, flags::SYN | flags::ACK] {
            assert_eq!(ends(runner, &tcp(user, flags)), unseen, "{flags}");
        }
        // From so many that each place where it may be kept is somebody's.
        for n in 0..4_096 {
            let from = IpAddr::from(Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + n));
            assert_eq!(runner.action(&tcp(from, flags::ACK)).unwrap(), NEXT);
        }
        let container = address(stage, "cron");
        assert_eq!(ends(runner, &tcp(container, flags::ACK)), (SHOT, Some(Reason::SpoofedAddress)), "forged");
        // What is not like it in one thing, after it has passed.
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), unseen);
        let no_rule = (SHOT, Some(Reason::NoRule));
        assert_eq!(ends(runner, &tcp(user, flags::SYN)), no_rule, "opens");
        assert_eq!(ends(runner, &udp), no_rule, "a datagram");
        // The same place: 1,024 further on.
        let carried = shot(frame(user, Transport::Tcp(40_000, 9105, flags::ACK, Vec::new())));
        assert_eq!(ends(runner, &carried), no_rule, "to another port, which a process carries");
        let other = stage.link("hyother").unwrap();
        let stranger = Shot { ifindex: other, ingress: other, ..tcp(user, flags::ACK) };
        let seen = runner.run(&stranger).unwrap();
        let marked = hydra_common::names::carried(Identity::UNMANAGED);
        assert_eq!((seen.action, seen.mark), (NEXT, marked), "by another interface");
        let proxied = tcp("2001:db8:77::7".parse().unwrap(), flags::ACK);
        assert_eq!(ends(runner, &proxied), no_rule, "to a port that a process carries");
        let mut routed = tcp(user, flags::ACK);
        // Source route.
        routed.frame[14] = 0x46;
        routed.frame.splice(34..34, [131, 3, 4, 0]);
        let length = u16::from_be_bytes([routed.frame[16], routed.frame[17]]) + 4;
        routed.frame[16..18].copy_from_slice(&length.to_be_bytes());
        assert_eq!(ends(runner, &routed), (SHOT, Some(Reason::SourceRoute)), "with a source route");
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), unseen, "and again");

        // His address is a container's from here on, and nobody says so: the control, that something is kept.
        let mut rows = endpoints(stage);
        let theirs = rows.get(&Address::from(container), 0).unwrap();
        rows.insert(Address::from(user), theirs, 0).unwrap();
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), unseen, "nothing is kept");
        let (mut words, before) = (words(stage), runner.word(Word::Rows).unwrap());
        words.set(Word::Rows as u32, before + 1, 0).unwrap();
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), (SHOT, Some(Reason::SpoofedAddress)));
        rows.remove(&Address::from(user)).unwrap();
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), unseen);
        // The same by the agent's own hand.
        let mut moved = stage.desired.clone();
        let row = moved.endpoints[&Address::from(container)];
        moved.endpoints.insert(user.into(), row);
        runner.sync(&moved).unwrap();
        assert_eq!(ends(runner, &tcp(user, flags::ACK)), (SHOT, Some(Reason::SpoofedAddress)));
    });
}
