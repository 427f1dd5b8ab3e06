//! Texts that are made to hurt: each is refused with a word for it, and the memory that reading it takes is bounded.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hydra_agent::policy::parse_bytes;

/// The system's memory, counted.
struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// What is held is counted for the whole program: one test after the other.
static TURN: Mutex<()> = Mutex::new(());

fn more(bytes: usize) {
    MOST.fetch_max(HELD.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: everything is the system allocator's; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The longest text that is read at all.
const WHOLE: usize = 4 << 20;
/// What reading may take beside the text itself.
const ROOM: usize = 32 << 20;
/// The same of what has the form of a large policy: it is read to its end before anything can be said of it, and takes what a good one of
/// its size takes.
const LARGE: usize = 64 << 20;

fn room(name: &str) -> usize {
    if name == "rules that are all wrong" { LARGE } else { ROOM }
}

fn bomb(width: usize, depth: usize) -> String {
    let list = |of: &str| vec![of; width].join(", ");
    let mut text = format!("version: 1\nx0: &x0 [{}]\n", list("a"));
    for level in 1..depth {
        let _ = writeln!(text, "x{level}: &x{level} [{}]", list(&format!("*x{}", level - 1)));
    }
    text + "tiers: {}\n"
}

fn utf16(text: &str, little: bool) -> Vec<u8> {
    let bytes = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(bytes).collect()
}

/// Name, text, and a word of the refusal.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = "version: 1\ntiers: { a: { networks: [n] } }\n";
    let fill = |unit: &str| unit.repeat((WHOLE - 200) / unit.len());
    let deep = |open: &str, close: &str, times: usize| {
        format!("version: 1\ntiers: {}{}\n", open.repeat(times), close.repeat(times))
    };
    let blocks: Vec<String> = (0..1_500).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let blocks = blocks.concat();
    let dashes = format!("version: 1\ntiers:\n  {}a\n", "- ".repeat(100_000));
    let anchors: String = (0..100_000).fold("version: 1\ntiers:\n".to_owned(), |mut text, n| {
        let _ = writeln!(text, "  - &a{n} x");
        text
    });
    let aliases =
        format!("version: 1\nx: &x [1, 2, 3, 4, 5, 6, 7, 8]\ny: [{}]\ntiers: {{}}\n", "*x, ".repeat(100_000));
    let rules: String = (0..40_000).fold(
        "version: 1\ntiers: { a: { networks: [n] } }\nrules:\n".to_owned(),
        |mut text, n| {
            let _ = writeln!(text, "  - {{ name: r{n}, from: nobody{n}, to: no-one{n}, limit: 0/s }}");
            text
        },
    );
    let keys: String = (0..60_000).fold("version: 1\n".to_owned(), |mut text, n| {
        let _ = writeln!(text, "k{n}: 1");
        text
    });
    vec![
        ("an alias bomb", bomb(10, 9).into(), "aliases"),
        ("a wide alias bomb", bomb(1_000, 4).into(), "aliases"),
        ("many aliases", aliases.into(), "aliases"),
        ("many anchors", anchors.into(), ""),
        ("nested lists", deep("[", "]", 1_000_000).into(), "deep"),
        ("nested lists without an end", deep("[", "", 1_000_000).into(), "deep"),
        ("nested mappings", deep("{ a: ", "}", 500_000).into(), "deep"),
        ("nested blocks", blocks.into(), "deep"),
        ("nested dashes", dashes.into(), "deep"),
        (
            "lists in lists by dashes",
            format!("version: 1\ntiers:\n{}", fill(&format!("  {}x\n", "- ".repeat(29)))).into(),
            "too many",
        ),
        (
            "entries in lists by dashes",
            format!("version: 1\nrules:\n{}", fill(&format!("  - {}x\n", "- ".repeat(28)))).into(),
            "too many",
        ),
        ("a list of nothing", format!("version: 1\ntiers: [{}]\n", fill(",")).into(), ""),
        ("a list of small things", format!("version: 1\ntiers: [{}]\n", fill("a,")).into(), ""),
        ("a mapping of small things", format!("version: 1\ntiers: {{{}}}\n", fill("a: b,")).into(), ""),
        (
            "a quarter of the values that there may be",
            format!("version: 1\ntiers: [{}]\n", "a,".repeat(260_000)).into(),
            "found a list",
        ),
        ("lists of lists", format!("version: 1\ntiers: [{}]\n", fill("[],")).into(), ""),
        ("keys that nobody knows", keys.into(), "unknown key"),
        ("rules that are all wrong", rules.into(), "unknown tier"),
        ("one long name", format!("version: 1\nname: {}\ntiers: {{}}\n", fill("x")).into(), "too long"),
        (
            "one long quoted text",
            format!("version: 1\nname: \"{}\"\ntiers: {{}}\n", fill("\\u263a")).into(),
            "too long",
        ),
        ("comments alone", fill("# nothing\n").into(), "empty"),
        ("blanks alone", fill("          \n").into(), "empty"),
        ("a line without an end", fill(" ").into(), ""),
        ("documents", fill("---\n").into(), "more than one document"),
        ("bad bytes", vec![0xfe; WHOLE - 200], "UTF-8"),
        ("too long by one", vec![b'#'; WHOLE + 1], "too long"),
        ("eight times too long", vec![b' '; 8 * WHOLE], "too long"),
        ("NUL", format!("{good}name: \0\n").into(), "NUL"),
        ("NULs alone", vec![0; WHOLE - 200], "NUL"),
        ("UTF-16, little end first", utf16(good, true), "UTF-16"),
        ("UTF-16, big end first", utf16(good, false), "UTF-16"),
        ("UTF-16 without a mark", utf16(good, true)[2..].to_vec(), ""),
        ("a surrogate", [good.as_bytes(), b"name: \xed\xa0\x80\n"].concat(), "UTF-8"),
        ("an overlong slash", [good.as_bytes(), b"name: \xc0\xaf\n"].concat(), "UTF-8"),
    ]
}

#[test]
fn texts_that_are_made_to_hurt_are_refused_within_bounds() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // The control: what is good is read, and counted.
    assert!(parse_bytes(b"version: 1\ntiers: { a: { networks: [n] } }\n", "good").is_ok());
    let mut wrong = Vec::new();
    for (name, bytes, word) in cases() {
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let start = Instant::now();
        let refused = parse_bytes(&bytes, "hostile.yaml").err();
        let (took, most) = (start.elapsed(), MOST.load(Ordering::Relaxed) - before);
        let said = refused.as_ref().map_or("accepted".to_owned(), |problems| {
            let found = problems.iter().find(|d| d.message.contains(word)).or_else(|| problems.iter().next());
            found.map(|d| d.message.clone()).unwrap_or_default()
        });
        let told = refused.map_or(0, |problems| problems.len());
        println!(
            "{name}: {} bytes, {took:?}, {} KiB: {}",
            bytes.len(),
            most >> 10,
            said.chars().take(80).collect::<String>()
        );
        if said == "accepted" || !said.contains(word) {
            wrong.push(format!("{name}: {}", said.chars().take(200).collect::<String>()));
        }
        if most > room(name) + bytes.len() || told > 2_001 {
            wrong.push(format!("{name}: it took {} KiB and told {told} problems", most >> 10));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What came of `hydractl policy validate` as a process.
struct Run {
    code: i32,
    said: String,
    took: Duration,
    /// The most memory that it held, in KiB.
    most: i64,
}

fn validate(file: &Path) -> Run {
    let hydractl = hydra_tests::binary::binary("hydractl").unwrap();
    let mut command = Command::new(hydractl);
    command.args(["policy", "validate"]).arg(file).stdout(Stdio::null()).stderr(Stdio::piped());
    // A process begins its count with what its parent held before it became another program.
    // SAFETY: no pointers.
    unsafe { libc::malloc_trim(0) };
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let begun = Instant::now();
    #[expect(clippy::zombie_processes, reason = "`wait4` below waits for it, and says what it held")]
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both are places of their own, and the child is nobody else's to wait for.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, usage.as_mut_ptr()) };
    let took = begun.elapsed();
    assert_eq!(waited, child.id().cast_signed());
    // SAFETY: zeroes are a value of it, and the kernel has filled it.
    let most = unsafe { usage.assume_init() }.ru_maxrss;
    Run { code: libc::WEXITSTATUS(status), said, took, most }
}

/// The same as a process, beside one that reads a good text; and a gigabyte, which is refused without being read. The times are worth
/// telling of a release build, which `CARGO_BIN_EXE_hydractl` may name.
#[test]
fn a_process_that_is_given_them_refuses_them_within_bounds() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = |number: usize| folder.path().join(format!("{number}.yaml"));
    let write = |(number, (name, bytes, word)): (usize, (_, Vec<u8>, _))| {
        std::fs::write(file(number), &bytes).unwrap();
        (name, bytes.len() as u64, if bytes.len() > WHOLE { (2, "larger than") } else { (1, word) })
    };
    let mut cases: Vec<_> = cases().into_iter().enumerate().map(write).collect();
    std::fs::File::create(file(cases.len())).unwrap().set_len(1 << 30).unwrap();
    cases.push(("a gigabyte", 1 << 30, (2, "larger than")));
    std::fs::write(file(cases.len()), "version: 1\ntiers: { a: { networks: [n] } }\n").unwrap();
    let good = validate(&file(cases.len()));
    assert!(good.code == 0 && good.most > 0, "{}", good.said);
    println!("figure: a good one: {:?}, {} KiB", good.took, good.most);
    let mut wrong = Vec::new();
    for (number, (name, length, (code, word))) in cases.into_iter().enumerate() {
        let run = validate(&file(number));
        let more = run.most - good.most;
        println!("figure: {name}: {length} bytes, {:?}, {more} KiB more than a good one", run.took);
        if run.code != code || !run.said.contains(word) || more > (room(name) >> 10).cast_signed() as i64 {
            let said: String = run.said.chars().take(200).collect();
            wrong.push(format!("{name}: {} after {:?}, {more} KiB more: {said}", run.code, run.took));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
