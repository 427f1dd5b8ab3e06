//! Writes `docs/benchmarks.md`, and beside it the data and pictures, from what was kept of runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use hydra_tests::binary::root;

use crate::environment::Environment;
use crate::kept;
use crate::l0::{self, Found};
use crate::l4;
use crate::report::{Report, number, target};
use crate::svg;

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
         all, or none; before, as a control, all of what is denied, where nobody denies it. Docker's rules are those of its own golden files, \
         put into the kernel by `iptables-restore`; where they forward, an operator has allowed it in `DOCKER-USER`.",
    ),
    (
        "L3",
        "applications",
        "A client and a server in two containers, on all CPUs. Between networks `without hydra` is a host where an operator has allowed \
         it in `DOCKER-USER`, `with hydra` one where Docker would drop it and hydra's policy allows it. Published ports are not \
         measured yet.",
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
the median. Each section is the last run of its level; a load above 1 says that the machine did other things meanwhile.

## Targets

| P | what | target | measured |
| --- | --- | --- | --- |
";

const RECIPE: &str = "
## 10GbE with two machines

A card of 10 Gbit/s carries 14.88 million frames of 64 bytes a second, 67 ns each, and 0.81 million of 1,500 bytes, 1,230 ns each. On
one core no classifier drops the first, since each already has its buffer when a classifier sees it. The second is what one core can
be asked for. On one machine with veths nothing can be said about cards; with two:

1. Machine A: any sender of UDP at line rate (`pktgen` of the kernel, or MoonGen), to an address of a container on machine B; a route
   to that container's network by B.
2. Machine B: Docker, hydra, the container in a tier that `external` may call on one port. One receive queue, its interrupt and nothing
   else on core 2 (`ethtool -L DEV combined 1`, `/proc/irq/N/smp_affinity_list`).
3. For each row below, 30 rounds in turns of 10 s: without hydra, with it. Read what arrived in the container's `eth0`
   (`ip -s link`), what the card dropped (`ethtool -S DEV`), and how busy core 2 was (`mpstat -P 2 10`).

| frames | path | without hydra, Mpps | with hydra, Mpps | core, without | core, with | ratio, 95 % interval |
| --- | --- | --- | --- | --- | --- | --- |
| 64 bytes | denied | | | | | |
| 64 bytes | allowed | | | | | |
| 1,500 bytes | denied | | | | | |
| 1,500 bytes | allowed | | | | | |
";

fn page(found: Option<&Found>, reports: &[(Report, &str, &str)]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (row, what, wanted) in TARGETS {
        let mut lines: Vec<String> = Vec::new();
        for m in reports.iter().flat_map(|(report, ..)| &report.measured) {
            if let Some(goal) = m.goal.filter(|goal| goal.row() == row) {
                let e = m.estimate;
                lines.push(format!(
                    "{}: {} {} ({} to {}, largest {}, N = {}), {}: {}",
                    m.what,
                    number(e.median),
                    m.unit,
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
        text += "| measured | median | 95 % interval | largest | N | target |\n| --- | --- | --- | --- | --- | --- |\n";
        for m in &report.measured {
            let e = m.estimate;
            let interval = format!("{} to {}", number(e.low), number(e.high));
            let _ = writeln!(
                text,
                "| {} | {} {} | {interval} | {} | {} | {} |",
                m.what,
                number(e.median),
                m.unit,
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
