//! Writes `docs/benchmarks.md`, and beside it the data and pictures, from what was kept of runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use hydra_tests::binary::root;

use crate::environment::Environment;
use crate::kept;
use crate::l0::{self, Found};
use crate::report::{Report, number, target};
use crate::svg;
use crate::{l2, l4};

/// Levels whose reports are of one shape: name, what, how.
const LEVELS: [(&str, &str, &str); 4] = [
    (
        "L1",
        "test runs of the programs",
        "The program of a container's port, run by the kernel on a frame from memory (`BPF_PROG_TEST_RUN`) on one CPU, 10,000 times for each \
         value, the quickest of six turns. A packet that must be another each time, and one that is changed, comes through a dozen \
         instructions that write its header; what these take is measured in the same round and subtracted (`established, shaken` shows how \
         well). `One look-up` reads the addresses and ports, finds a row by a key of 40 bytes in a hash table of 131,072, and counts a packet and its bytes. \
         Where the kernel puts code and tables makes a difference of up to a fifth from load to load, so that everything is loaded \
         several times; `the same again` is the smallest policy beside itself, and an interval holds what rounds make, not what another \
         load would.",
    ),
    (
        "L2",
        "live frames",
        "UDP frames of 64 bytes (with the FCS) arrive at a container's port as if its driver had received them \
         (`BPF_F_TEST_XDP_LIVE_FRAMES`) on one CPU: no sender is in the figures, the making of each buffer is. Each guard has a host of its own in \
         namespaces. Denied frames come from another source port each. How many arrive at the receiver is counted there in every sample: \
         all, or none; before, as a control, all of what is denied, where nobody denies it; hydra's counters must say the same. Docker's rules are those of its own golden files, \
         put into the kernel by `iptables-restore`; where they forward, an operator has allowed it in `DOCKER-USER`. `From outside` is a call of a \
         published port that the policy does not let in, where it comes in: what a guard lets pass is counted behind it. A native pre-drop is run \
         as a driver would, by the program that makes the frames, before there is a buffer of the kernel's. A share of a core is what one core \
         that is never idle passes of such frames, turned round.",
    ),
    (
        "L3",
        "applications",
        "A client and a server in two containers: on the same CPU (`one CPU`), which is never idle, so that the figure is what all that either \
         does costs; and on `a CPU each`, of which one waits idle for the other, so that half of a short answer's time may be how long a CPU \
         takes to wake, long on a virtual machine. Left to the scheduler two hosts without hydra differ by up to a fifth. Between networks `without hydra` is a host where an operator has allowed \
         it in `DOCKER-USER`, `with hydra` one where Docker would drop it and hydra's policy allows it. `To a published port` a client \
         behind an interface to the outside calls an address of the host, whose port Docker's rules lead to the container (DNAT in `nat`, \
         let pass in `DOCKER`): the same rules on both hosts, and with hydra its programs at that interface, at the bridges and at the \
         container's port, whose policy lets the outside call it.",
    ),
    ("L4", "the agent", l4::HOW),
];

/// The table of targets: number, what, target.
const TARGETS: [(u8, &str, &str); 14] = [
    (1, "established packet, test run", "at most 1.5x a program of one look-up; at most 60 ns when quiet"),
    (
        2,
        "denied packet, another tuple each time",
        "at most 1.3x the established packet; no entry in the flow table",
    ),
    (
        3,
        "the same with 4, 64, 252 tiers (the most); 10, 1,000, 10,000 rules; 1, 100, 1,000 containers",
        "at most 1.15x",
    ),
    (
        4,
        "dropping a denied flood",
        "at least 4x Docker's FORWARD drop, 8x with 100 containers; at least 0.95x one nft netdev rule",
    ),
    (
        5,
        "forwarding allowed 64-byte packets between networks",
        "at least 3x the kernel's path with Docker's rules of 10 containers",
    ),
    (
        6,
        "TCP bulk; request and response; connect, request, close",
        "at least 1.2x / 1.3x / 1.2x Docker's path; 0.98x where Docker allows it",
    ),
    (7, "verified instructions; machine code; memory of a flow", "at most 16,000; 8 kB; 160 B"),
    (8, "counters", "exact to the packet and the byte, both ways, two CPUs at once, IPv4 and IPv6"),
    (9, "policy compiled: 64 tiers and 10,000 rules; 252 (the most) and 50,000", "at most 50 ms; 500 ms"),
    (10, "policy applied, to the new verdict", "at most 50 ms for 10,000 rules; 20 ms for one that changed"),
    (11, "container's port there to its programs attached", "p99 at most 20 ms"),
    (
        12,
        "a million flows read for export; no call longer; 131,072 flows every 10 s",
        "at most 0.5 s of CPU; 5 ms; 0.5 % of a core",
    ),
    (13, "agent at rest, 50 containers", "at most 0.2 % of a core, 30 MiB"),
    (14, "10GbE", "a share of a core for 0.81 M packets/s; two machines for 64 bytes"),
];

/// Writes everything there are results for; which files.
pub fn publish(out: &Path) -> Result<Vec<PathBuf>> {
    let docs = root().canonicalize()?.join("docs");
    let folder = docs.join("benchmarks");
    let mut written = Vec::new();
    let mut write = |file: PathBuf, text: &str| -> Result<()> {
        kept::write(&file, text)?;
        written.push(file);
        Ok(())
    };
    // What an earlier run has published stays until there is something newer.
    let found = match Found::read(out)? {
        Some(found) => Some(found),
        None => Found::read(&folder)?,
    };
    let mut reports = Vec::new();
    for (level, what, how) in LEVELS {
        let report = match Report::read(out, level)? {
            Some(report) => Some(report),
            None => Report::read(&folder, level)?,
        };
        reports.extend(report.map(|report| (report, what, how)));
    }
    if let Some(found) = &found {
        found.write(&folder)?;
    }
    for (report, ..) in &reports {
        report.write(&folder)?;
        for (name, picture) in svg::pictures(report) {
            write(folder.join(name), &picture)?;
        }
    }
    write(docs.join("benchmarks.md"), &page(found.as_ref(), &reports))?;
    Ok(written)
}

const INTRODUCTION: &str = "\
# Benchmarks

Written by `cargo xtask bench --publish`; `cargo xtask bench --help` says what each level is. The data with every sample is in
[`benchmarks/`](benchmarks), what measured it in [`bench/`](../bench).

Ratios are medians over rounds of what was measured in turns in the same round (A B C, C B A …), with the 95 % interval of a percentile
bootstrap. Take an absolute figure only beside its reference: these are of whatever machine stands with them. A target is met or missed by
the median, or by the 99th percentile where that is named (`p99`). Each section is the last run of its level that was published; a load
above 1 says that the machine did other things meanwhile.

## Targets

| P | what | target | measured |
| --- | --- | --- | --- |
";

const RECIPE: &str = r#"
## 10GbE with two machines

A card of 10 Gbit/s carries 14.88 million frames of 64 bytes a second, 67 ns each, and 0.81 million of 1,500 bytes, 1,230 ns each. On
one core no classifier drops the first, since each already has its buffer when a classifier sees it; a pre-drop in the driver comes
before that. The second is what one core can be asked for. On one machine with veths nothing can be said about cards; with two:

**Machine A** sends, with the kernel's `pktgen` on four cores (`PORT` 8053 is the closed port of B, 8054 the open one; `SIZE` 60 or
1514, the FCS is the card's). It runs until it is interrupted and says then how much it sent. For the open port leave `UDPSRC_RND` out:
one flow.

```sh
modprobe pktgen; cd /proc/net/pktgen
for n in 0 1 2 3; do
  echo rem_device_all > kpktgend_$n; echo add_device eth0@$n > kpktgend_$n
  for line in "count 0" "clone_skb 0" "delay 0" "pkt_size $SIZE" "dst ADDRESS-OF-B" "dst_mac MAC-OF-B" \
      "udp_src_min 1024" "udp_src_max 65535" "flag UDPSRC_RND" "udp_dst_min $PORT" "udp_dst_max $PORT" \
      "queue_map_min $n" "queue_map_max $n"; do echo "$line" > eth0@$n; done
done
echo start > pgctrl
```

**Machine B** receives on core 2 alone, which does nothing else, and has two published ports of which the policy opens one to the outside
(`{ name: open, from: external, to: apps, ports: [udp/54] }`):

```sh
systemctl stop irqbalance; cpupower frequency-set -g performance
ethtool -L eth0 combined 1; ethtool -A eth0 rx off tx off
for irq in $(grep -w eth0 /proc/interrupts | cut -d: -f1); do echo 2 > /proc/irq/$irq/smp_affinity_list; done
docker network create apps
docker run -d --name sink --network apps -p 8053:53/udp -p 8054:54/udp busybox sleep infinity
docker exec sink sh -c 'nc -u -l -p 54 > /dev/null &'
```

Who guards, one at a time:

```sh
# iptables, where Docker wants an operator's rules:
iptables -I DOCKER-USER -i eth0 -p udp -m conntrack --ctorigdstport 8053 -j DROP
# the earliest of iptables:
iptables -t raw -I PREROUTING -i eth0 -p udp --dport 8053 -j DROP
# the earliest of nftables:
nft 'add table netdev t; add chain netdev t in { type filter hook ingress device "eth0" priority 0; }; add rule netdev t in udp dport 8053 drop'
# hydra, with `predrop: off`, `generic` or `native` in /etc/hydra/agent.yaml; `hydractl status -o json` has the mechanism under `hooks`
systemctl restart hydra-agent
```

For each row 30 rounds in turns of 10 s (A B C, C B A …), a second of flood before each. Read before and after: what the card received and what
it dropped because nobody came for it (`ethtool -S eth0`: `rx_packets`, and `rx_missed_errors`, `rx_no_dma_resources`, `rx_out_of_buffer` or what its driver
calls that), of a denied flood what the guard ended (`iptables -vnxL`, `nft list ruleset` with `counter` in the rule, `hydractl drops --totals`), of an allowed one
what arrived (`docker exec sink cat /sys/class/net/eth0/statistics/rx_packets`), and how busy core 2 was (`mpstat -P 2 10 1`, 100 less `%idle`). The control: the closed port with no guard
at all, where the container receives what the table's row of that name says.

| frames | guard | received, Mpps | lost by the card, Mpps | ended or delivered, Mpps | core 2, % | by the row above it of the same frames, 95 % interval |
| --- | --- | --- | --- | --- | --- | --- |
| 64 bytes, denied | nobody (the control) | | | | | |
| 64 bytes, denied | iptables, DOCKER-USER | | | | | |
| 64 bytes, denied | iptables, raw PREROUTING | | | | | |
| 64 bytes, denied | nft, netdev | | | | | |
| 64 bytes, denied | hydra, classifier | | | | | |
| 64 bytes, denied | hydra, pre-drop, generic | | | | | |
| 64 bytes, denied | hydra, pre-drop, native | | | | | |
| 64 bytes, allowed | Docker alone | | | | | |
| 64 bytes, allowed | hydra | | | | | |
| 64 bytes, allowed | hydra, pre-drop, native | | | | | |
| 1,500 bytes, denied | nft, netdev | | | | | |
| 1,500 bytes, denied | hydra, classifier | | | | | |
| 1,500 bytes, denied | hydra, pre-drop, native | | | | | |
| 1,500 bytes, allowed | Docker alone | | | | | |
| 1,500 bytes, allowed | hydra | | | | | |
| 1,500 bytes, allowed | hydra, pre-drop, native | | | | | |
"#;

fn page(found: Option<&Found>, reports: &[(Report, &str, &str)]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (row, what, wanted) in TARGETS {
        let mut lines: Vec<String> = Vec::new();
        for m in reports.iter().flat_map(|(report, ..)| &report.measured) {
            if let Some(goal) = m.goal.filter(|goal| goal.row() == row) {
                let e = m.estimate;
                lines.push(format!(
                    "{}: {} ({} to {}, largest {}, N = {}), {}: {}",
                    m.what,
                    m.figure(),
                    number(e.low),
                    number(e.high),
                    number(m.most()),
                    e.n,
                    goal.said(),
                    verdict(goal.met(&e))
                ));
            }
        }
        for ratio in reports.iter().flat_map(|(report, ..)| &report.ratios) {
            if ratio.goal.is_some_and(|goal| goal.row() == row) {
                let e = ratio.estimate;
                lines.push(format!(
                    "{} / {}: {:.2} ({:.2} to {:.2}, N = {}), {}",
                    ratio.of,
                    ratio.to,
                    e.median,
                    e.low,
                    e.high,
                    e.n,
                    verdict(ratio.goal.is_some_and(|goal| goal.met(&e)))
                ));
            }
        }
        match (row, found) {
            (7, Some(found)) => lines.extend(size(found)),
            (14, _) => {
                let all = reports.iter().flat_map(|(report, ..)| &report.measured);
                for m in all.filter(|m| m.what.starts_with(l2::SHARE)) {
                    let e = m.estimate;
                    let (low, high) = (number(e.low), number(e.high));
                    lines.push(format!("{}: {} % ({low} to {high}, N = {})", m.what, number(e.median), e.n));
                }
                lines.push("64 bytes: see [10GbE with two machines](#10gbe-with-two-machines)".to_owned());
            }
            (8, Some(found)) => lines.extend(found.exact.iter().map(ToString::to_string)),
            _ => {}
        }
        let measured = if lines.is_empty() { "not measured yet".to_owned() } else { lines.join("<br>") };
        let _ = writeln!(text, "| {row} | {what} | {wanted} | {measured} |");
    }
    if let Some(found) = found {
        let _ = writeln!(text, "\n## L0: the object\n\n{}\n", environment(&found.environment));
        let _ = writeln!(
            text,
            "```\n{}```",
            l0::table(&found.figures, Some(&found.figures)).replace("  changed", "").replace("  no\n", "\n")
        );
        let _ = writeln!(
            text,
            "\nWhat each function cost the verifier is in [`object.json`](benchmarks/object.json), with which every run of the tests compares."
        );
    }
    for (report, what, how) in reports {
        let form = if report.long { "long" } else { "short" };
        let _ = writeln!(
            text,
            "\n## {}: {what}\n\n{how}\n\n{} The {form} form.\n",
            report.level,
            environment(&report.environment)
        );
        for (name, _) in svg::pictures(report) {
            let _ = writeln!(text, "![{}: {what}](benchmarks/{name})\n", report.level);
        }
        text += "| measured | median, or what is named | 95 % interval | largest | N | target |\n| --- | --- | --- | --- | --- | --- |\n";
        for m in &report.measured {
            let e = m.estimate;
            let interval = format!("{} to {}", number(e.low), number(e.high));
            let _ = writeln!(
                text,
                "| {} | {} | {interval} | {} | {} | {} |",
                m.what,
                m.figure(),
                number(m.most()),
                e.n,
                target(m.goal, &e)
            );
        }
        text += "\n| ratio | median | 95 % interval | N | target |\n| --- | --- | --- | --- | --- |\n";
        for r in &report.ratios {
            let e = r.estimate;
            let _ = writeln!(
                text,
                "| {} / {} | {:.2} | {:.2} to {:.2} | {} | {} |",
                r.of,
                r.to,
                e.median,
                e.low,
                e.high,
                e.n,
                target(r.goal, &e)
            );
        }
    }
    text + RECIPE
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

/// The largest of each.
fn size(found: &Found) -> Vec<String> {
    let programs = found.figures.programs.values();
    let most = |of: fn(&l0::Program) -> u32| programs.clone().map(of).max().unwrap_or_default();
    let (verified, jited) = (most(|p| p.verified), most(|p| p.jited));
    let flow = found.figures.maps.get(hydra_common::names::FLOWS);
    let flow = flow.map_or(0, |map| map.bytes / u64::from(map.entries.max(1)));
    vec![
        format!("{verified} instructions, {}", verdict(verified <= 16_000)),
        format!("{jited} B of machine code, {}", verdict(jited <= 8_000)),
        format!("{flow} B a flow, {}", verdict(flow <= 160)),
    ]
}

fn environment(e: &Environment) -> String {
    let machine = if e.virtual_machine { "virtual machine" } else { "machine" };
    format!(
        "{} UTC, commit `{}`, Linux {}, {} x {} ({machine}, {} MiB, load {} before), JIT {}, Spectre v2: {}. {}",
        e.date,
        e.commit,
        e.kernel,
        e.cpus,
        e.cpu,
        e.memory / 1024,
        e.load,
        e.jit,
        e.spectre_v2,
        e.tools.join(", ")
    )
}
