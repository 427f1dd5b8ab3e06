//! Loads the object into the kernel with the verifier's whole log, and reads from it what each function cost.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use aya_obj::{Function, Object, ProgramSection};
use hydra_tests::world::require_root;

use super::{Figures, Map, Program};
use crate::bpf::{self, Load};
use crate::environment::kernel;

/// `BPF_LOG_LEVEL2 | BPF_LOG_STATS`: every instruction that is looked at, and the sum.
const LOG: u32 = 2 | 4;
/// Room for it: some hundred bytes for each instruction. Pages that are not written take no memory.
const LOG_ROOM: usize = 512 << 20;

/// The figures of an object's bytes; with those of each function, which takes ten times as long, if that is asked.
pub fn figures(bytes: &[u8], functions: bool) -> Result<Figures> {
    require_root()?;
    let mut object = Object::parse(bytes).context("cannot read the kernel object")?;
    let features = aya::features();
    let types = features.btf().context("this kernel takes no types of programs")?;
    let btf = object.fixup_and_sanitize_btf(types)?.context("the object has no types")?.to_bytes();
    let btf = bpf::load_btf(&btf).context("the kernel refuses the object's types")?;
    let mut found = Figures {
        kernel: kernel()?,
        cpus: aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("cannot read {what}: {e}"))?,
        ..Figures::default()
    };
    let mut maps = Vec::new();
    for (name, map) in object.maps.drain() {
        let entries = map.max_entries();
        let row = [map.map_type(), map.key_size(), map.value_size(), entries, map.map_flags()];
        let fd = bpf::create(row).with_context(|| format!("cannot make {name}"))?;
        found.maps.insert(name.clone(), Map { entries, bytes: fdinfo(fd.as_fd(), "memlock")? });
        maps.push((name, fd, map));
    }
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let linked = maps.iter().map(|(name, fd, map)| (name.as_str(), fd.as_raw_fd(), map));
    object.relocate_maps(linked, &sections)?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(features);
    let mut log = vec![0; if functions { LOG_ROOM } else { 0 }];
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key()).context("a program without code")?;
        let figures = verify(&program.section, function, btf.as_fd(), &mut log)
            .with_context(|| format!("the kernel refuses {name}"))?;
        found.programs.insert(name.clone(), figures);
    }
    Ok(found)
}

fn verify(
    section: &ProgramSection,
    function: &Function,
    btf: BorrowedFd<'_>,
    log: &mut [u8],
) -> Result<Program> {
    let code: Vec<u8> = function
        .instructions
        .iter()
        .flat_map(|i| {
            // The bit field of registers has its bytes in the kernel's order.
            let [registers] = i._bitfield_1.get(0, 8).to_le_bytes()[..1] else { return [0; 8] };
            let (o, n) = (i.off.to_ne_bytes(), i.imm.to_ne_bytes());
            [i.code, registers, o[0], o[1], n[0], n[1], n[2], n[3]]
        })
        .collect();
    let functions = function.func_info.func_info_bytes();
    let (kind, attach) = kind(section)?;
    let size = function.func_info_rec_size as u32;
    let mut load = Load {
        kind,
        attach,
        code: &code,
        btf: Some((btf, &functions, size)),
        log: if log.is_empty() { None } else { Some((&mut *log, LOG)) },
    };
    let program = bpf::load(&mut load)?;
    let verified = fdinfo(program.as_fd(), "verified_insns")? as u32;
    let (xlated, jited) = info(&program)?;
    if log.is_empty() {
        return Ok(Program { verified, xlated, jited, functions: BTreeMap::new() });
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    let functions = by_function(&log);
    let sum: u32 = functions.values().sum();
    ensure!(sum == verified, "the log shows {sum} instructions, the kernel counts {verified}");
    Ok(Program { verified, xlated, jited, functions })
}

/// Type and attach type (`include/uapi/linux/bpf.h`).
fn kind(section: &ProgramSection) -> Result<(u32, u32)> {
    use aya_obj::programs::{CgroupSkbAttachType as Skb, CgroupSockAddrAttachType as Address};
    #[expect(clippy::wildcard_enum_match_arm, reason = "hydra has programs of these types alone")]
    Ok(match section {
        ProgramSection::SchedClassifier => (bpf::SCHED_CLS, 0),
        ProgramSection::Xdp { .. } => (bpf::XDP_PROGRAM, bpf::XDP),
        ProgramSection::CgroupSkb { attach_type } => match attach_type {
            Some(Skb::Egress) => (8, 1),
            _ => (8, 0),
        },
        ProgramSection::CgroupSockAddr { attach_type } => match attach_type {
            Address::Connect4 => (18, 10),
            Address::Connect6 => (18, 11),
            Address::UDPSendMsg4 => (18, 14),
            Address::UDPSendMsg6 => (18, 15),
            other => bail!("programs of {other:?} are not known here"),
        },
        other => bail!("programs of {other:?} are not known here"),
    })
}

/// Instructions by function. A log says `Validating NAME() func#N...` before a function that is verified for itself; what stands
/// before is the program's own, with what is verified in its place.
fn by_function(log: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    let mut now = "(itself)".to_owned();
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("Validating ")
            && let Some((name, _)) = rest.split_once("() func#")
        {
            name.clone_into(&mut now);
        } else if is_instruction(line) {
            *counts.entry(now.clone()).or_default() += 1;
        }
    }
    counts
}

/// `12: (bf) r6 = r1 …`; `12: safe` or `from 3 to 12: safe` where what follows was seen before.
fn is_instruction(line: &str) -> bool {
    let Some((place, rest)) = line.split_once(": ") else { return false };
    let number = !place.is_empty() && place.bytes().all(|b| b.is_ascii_digit());
    let known = rest == "safe" && (number || place.starts_with("from "));
    known || number && rest.starts_with('(') && rest.as_bytes().get(3) == Some(&b')')
}

/// A number of `/proc/self/fdinfo`.
fn fdinfo(fd: BorrowedFd<'_>, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = value.with_context(|| format!("this kernel does not say `{key}`"))?;
    Ok(value.trim().parse()?)
}

/// Bytes of translated and of machine code.
fn info(program: &OwnedFd) -> Result<(u32, u32)> {
    // The first words of `struct bpf_prog_info`: type, id, tag (8 bytes), jited_prog_len, xlated_prog_len.
    let mut info = [0u32; 6];
    bpf::info(program, &mut info)?;
    ensure!(info[4] > 0, "the kernel runs this program without a compiler: is `net.core.bpf_jit_enable` 0?");
    Ok((info[5], info[4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_apart_by_functions() {
        let log = "func#0 @0\n0: R1=ctx() R10=fp0\n0: (bf) r6 = r1 ; R1=ctx()\n1: (85) call pc+3\nfrom 1 to 2: R0=1\n\
                   2: (95) exit\n3: safe\nfrom 3 to 4: safe\nValidating hydra_first() func#1...\n5: (b7) r0 = 0\n6: (95) exit\n\
                   Func#1 ('hydra_first') is safe for any args that match its prototype\nprocessed 7 insns (limit 1000000)\n";
        let counts = by_function(log);
        assert_eq!(counts, [("(itself)".to_owned(), 5), ("hydra_first".to_owned(), 2)].into());
    }
}
