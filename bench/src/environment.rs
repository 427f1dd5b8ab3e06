//! Where figures were measured: without it they say nothing.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use hydra_tests::binary::root;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

/// A machine at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// When, UTC.
    pub date: String,
    /// The repository's commit; `+` where something was changed since.
    pub commit: String,
    /// Release and architecture.
    pub kernel: String,
    /// The processor's own name.
    pub cpu: String,
    /// How many of it.
    pub cpus: usize,
    /// Whether it is a virtual machine's, whose neighbours take time from it.
    pub virtual_machine: bool,
    /// KiB.
    pub memory: u64,
    /// `net.core.bpf_jit_enable` and `bpf_jit_harden`.
    pub jit: String,
    /// What is done against speculation that pays for indirect calls.
    pub spectre_v2: String,
    /// Processes that wanted to run in the minute before.
    pub load: String,
    /// `iptables`, `nft`.
    pub tools: Vec<String>,
}

impl Environment {
    /// Here and now.
    pub fn here() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let of = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(": ")).map_or_else(String::new, |(_, v)| v.trim().to_owned())
        };
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let memory =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        let now = OffsetDateTime::now_utc();
        Ok(Self {
            date: now.format(format_description!("[year]-[month]-[day] [hour]:[minute]"))?,
            commit: commit(),
            kernel: format!("{} {}", line("/proc/sys/kernel/osrelease"), std::env::consts::ARCH),
            cpu: of("model name"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: of("flags").split_whitespace().any(|flag| flag == "hypervisor"),
            memory: memory.context("no memory in /proc/meminfo")?.parse()?,
            jit: format!(
                "enable {}, harden {}",
                line("/proc/sys/net/core/bpf_jit_enable"),
                line("/proc/sys/net/core/bpf_jit_harden")
            ),
            spectre_v2: line("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
            load: line("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned(),
            tools: [("iptables", "--version"), ("nft", "--version")]
                .into_iter()
                .filter_map(|(tool, flag)| says(tool, &[flag]))
                .collect(),
        })
    }
}

/// A thread that stays on one CPU, and those that it starts meanwhile.
#[derive(Debug)]
pub struct Stay(CpuSet);

/// Keeps this thread on the first CPU that it may use until the answer goes: what is compared would else be on one or the other, whose
/// caches and tables are not alike.
pub fn stay() -> Result<Stay> {
    stay_on(Cpu::First)
}

/// One of the CPUs that a thread may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// The one with the lowest number.
    First,
    /// With the highest: another, where there are two.
    Last,
}

/// The same on another CPU.
pub fn stay_on(cpu: Cpu) -> Result<Stay> {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this)?;
    let mut usable = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true));
    let chosen = if cpu == Cpu::First { usable.next() } else { usable.next_back() };
    let mut one = CpuSet::new();
    one.set(chosen.context("no CPU")?)?;
    sched_setaffinity(this, &one).context("cannot stay on a CPU")?;
    Ok(Stay(all))
}

impl Drop for Stay {
    fn drop(&mut self) {
        // Those that it had cannot be refused.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// The kernel as figures of its verifier depend on it: `6.18 x86_64`.
pub fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version: Vec<&str> = release.trim().splitn(3, '.').take(2).collect();
    Ok(format!("{} {}", version.join("."), std::env::consts::ARCH))
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "not said".to_owned(), |text| text.trim().to_owned())
}

fn says(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).current_dir(root()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn commit() -> String {
    // The folder may be another user's where this runs as root.
    let git = |args: &[&str]| says("git", &[&["-c", "safe.directory=*"], args].concat());
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "not known".to_owned() };
    let changed = git(&["status", "--porcelain"]).is_none_or(|text| !text.is_empty());
    format!("{commit}{}", if changed { "+" } else { "" })
}
