//! `cargo xtask bench` builds and runs this as root: measures the levels that it is told, prints what they came to, and keeps it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program's data and its last words")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use hydra_bench::progress::Progress;
use hydra_bench::report::Report;
use hydra_bench::{environment, l0, l1, l2, l3, l4, publish};

/// What `cargo xtask bench` says in its own help.
#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Args {
    /// The levels.
    levels: Vec<Level>,
    /// The long forms.
    #[arg(long)]
    long: bool,
    /// Writes the committed figures of the object.
    #[arg(long)]
    update: bool,
    /// Only compares with them.
    #[arg(long)]
    check: bool,
    /// Writes the pages of the documentation.
    #[arg(long)]
    publish: bool,
    /// Where the results are kept.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Level {
    L0,
    L1,
    L2,
    L3,
    L4,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `false`: something is not as it was committed, or not exact.
fn run(args: &Args) -> Result<bool> {
    let mut held = true;
    for level in &args.levels {
        match level {
            Level::L0 => held &= object(args)?,
            Level::L1 => {
                let form = if args.long { l1::Form::LONG } else { l1::Form::SHORT };
                show(args, &l1::run(&form, &mut Progress::of("L1"))?)?;
            }
            Level::L2 => {
                let form = if args.long { l2::Form::LONG } else { l2::Form::SHORT };
                show(args, &l2::run(&form, &mut Progress::of("L2"))?)?;
            }
            Level::L3 => {
                let form = if args.long { l3::Form::LONG } else { l3::Form::SHORT };
                show(args, &l3::run(&form, &mut Progress::of("L3"))?)?;
            }
            Level::L4 => {
                let form = if args.long { l4::Form::LONG } else { l4::Form::SHORT };
                show(args, &l4::run(&form, &args.out, &mut Progress::of("L4"))?)?;
            }
        }
    }
    if args.publish {
        for file in publish::publish(&args.out)? {
            println!("wrote {}", file.display());
        }
    }
    Ok(held)
}

fn object(args: &Args) -> Result<bool> {
    if args.check {
        return compare(&l0::figures(false)?);
    }
    let found = l0::Found::now(&mut Progress::of("L0"))?;
    let old = l0::committed();
    println!("{}", l0::table(&found.figures, old.as_ref().ok()));
    for exact in &found.exact {
        println!("{exact}");
    }
    found.write(&args.out)?;
    if let Some(exact) = found.exact.iter().find(|exact| !exact.holds()) {
        bail!("the counters are not exact: {exact}");
    }
    if args.update {
        l0::update(&found.figures)?;
        println!("wrote {}", l0::place().display());
        return Ok(true);
    }
    compare(&found.figures)
}

/// Compares with the committed figures and says what grew.
fn compare(now: &l0::Figures) -> Result<bool> {
    let committed = l0::committed()?;
    if committed.kernel != environment::kernel()? {
        println!(
            "the committed figures are of Linux {}, this is {}: not compared",
            committed.kernel, now.kernel
        );
        return Ok(true);
    }
    let grown = l0::grown(now, &committed);
    for line in &grown {
        println!("grown by more than a tenth: {line}");
    }
    if !grown.is_empty() {
        println!(
            "\nhint: if that is what the change is worth, `cargo xtask bench L0 --update` writes the new figures"
        );
    }
    Ok(grown.is_empty())
}

fn show(args: &Args, report: &Report) -> Result<()> {
    println!("{}", report.table());
    report.write(&args.out)
}
