//! What stands between the networks of a scene.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hydra_agent::datapath::Predrop;
use hydra_tests::kernel::SHOT;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;

use crate::assembler::Code;
use crate::bpf::{self, SCHED_CLS};
use crate::docker;
use crate::scene::{Live, NAMES, Scene, Size};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub enum Guard {
    /// Nothing: the kernel forwards.
    Nobody,
    /// A program at the sender's port that drops everything.
    Program,
    /// One rule of nftables there.
    Netdev,
    /// Docker's rules for so many containers.
    Docker(docker::Form, u32),
    /// hydra, with the tables of a policy.
    Hydra(Size),
    /// hydra at an interface to the outside: the port that frames come by is one, and a port of this host leads to the receiver.
    Uplink(Predrop),
}

impl Guard {
    /// Takes its place: `links` keeps what is attached, the answer hydra. Where it is `open` Docker's rules let the sender pass.
    pub fn stand(self, scene: &Scene, open: bool, links: &mut Vec<OwnedFd>) -> Result<Option<Live>> {
        let port = scene.sender;
        match self {
            Self::Nobody => {}
            Self::Program => {
                let drop = Code::default().end(SCHED_CLS, SHOT)?;
                links.push(scene.world.enter(HOST, || bpf::attach(&drop, port, bpf::TCX_INGRESS))??);
            }
            Self::Netdev => {
                let name = World::port_name(NAMES[0].0, 0);
                feed(&scene.world, "nft", &["-f", "-"], &docker::netdev(&name, RECEIVER))?;
            }
            Self::Docker(form, containers) => {
                let rules = docker::rules(form, containers, RECEIVER, open);
                feed(&scene.world, "iptables-restore", &[], &rules)?;
            }
            Self::Uplink(want) => return Ok(Some(scene.world.enter(HOST, || scene.open_uplink(want))??)),
            Self::Hydra(size) => return Ok(Some(scene.world.enter(HOST, || scene.open("hydra", size))??)),
        }
        Ok(None)
    }
}

/// The second of [`NAMES`].
pub const RECEIVER: &str = "10.81.0.11";

/// Gives a text to a command of the host.
fn feed(world: &World, program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = world.spawn(HOST, command)?;
    child.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}\n{text}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
