//! The kernel object has not grown, counts exactly, and what measures it works.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use hydra_bench::l1::Form;
use hydra_bench::progress::Progress;
use hydra_bench::{environment, l0, l1};

#[test]
fn the_object_has_not_grown_by_a_tenth_without_a_word() {
    let (kernel, committed) = (environment::kernel().unwrap(), l0::committed().unwrap());
    if committed.kernel != kernel {
        println!("skipped: the committed figures are of Linux {}, this is {kernel}", committed.kernel);
        return;
    }
    let now = l0::figures(false).unwrap();
    let most = now.programs.values().map(|p| p.verified).max().unwrap();
    println!("figure: {most} verified instructions in the largest program");
    let grown = l0::grown(&now, &committed);
    let hint =
        "hint: if that is what the change is worth, `cargo xtask bench L0 --update` writes the new figures";
    assert!(grown.is_empty(), "{}\n\n{hint}", grown.join("\n"));
}

#[test]
fn functions_of_a_program_add_up_to_it() {
    let (kernel, committed) = (environment::kernel().unwrap(), l0::committed().unwrap());
    if committed.kernel != kernel {
        println!("skipped: the log is read as Linux {} writes it, this is {kernel}", committed.kernel);
        return;
    }
    // The figures of each function come from the verifier's log, and their sum is compared with what the kernel counts.
    let figures = l0::figures(true).unwrap();
    for (name, program) in figures.programs {
        assert_eq!(program.functions.values().sum::<u32>(), program.verified, "{name}");
        assert!(program.functions.len() > 1, "{name}: {:?}", program.functions);
    }
}

#[test]
fn two_cpus_count_every_packet_and_byte() {
    for exact in l0::exact(2_000).unwrap() {
        assert!(exact.holds(), "{exact}");
    }
}

#[test]
fn a_short_measurement_finds_packets_where_they_should_be() {
    // Each case fails where a packet does not come to what it is measured for. Ratios only tell that nothing is out of all proportion.
    let form = Form { loads: 1, rounds: 4, ..Form::SHORT };
    let report = l1::run(&form, &mut Progress::of("L1")).unwrap();
    for ratio in &report.ratios {
        println!("figure: {} / {}: {:.2}", ratio.of, ratio.to, ratio.estimate.median);
        assert!(ratio.estimate.median < 100.0, "{ratio:?}");
    }
}
