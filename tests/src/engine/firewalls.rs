//! The firewalls of other people, the real ones, run in a world: a folder with their packages, of which the world has a layer of
//! its own.

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::folder;
use crate::topology::HOST;
use crate::world::World;

/// See the module. What it starts ends with the world.
pub struct Firewalls<'w> {
    world: &'w World,
}

impl<'w> Firewalls<'w> {
    /// Mounts the folder in the world.
    pub fn of(world: &'w World) -> Result<Self> {
        let folder = folder::firewalls()?;
        let at = world.scratch("firewalls");
        world
            .enter(HOST, || -> Result<()> {
                for part in ["upper", "work", "root"] {
                    std::fs::create_dir_all(at.join(part))?;
                }
                let layers = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    folder.display(),
                    at.join("upper").display(),
                    at.join("work").display()
                );
                let root = at.join("root");
                mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))?;
                for part in ["proc", "sys", "dev"] {
                    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                    mount(Some(&*format!("/{part}")), &root.join(part), None::<&str>, flags, None::<&str>)?;
                }
                Ok(std::fs::create_dir_all(root.join("run/dbus"))?)
            })?
            .context("cannot mount the folder of firewalls")?;
        Ok(Self { world })
    }

    /// Runs one of its programs on the world's host; an error where it failed.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        let output = self.output(program)?;
        ensure!(
            output.status.success(),
            "`{}` failed: {}{}",
            program.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same, whatever comes of it.
    pub fn output(&self, program: &[&str]) -> Result<Output> {
        self.world.output(HOST, self.command(program))
    }

    /// Starts one that stays.
    pub fn start(&self, program: &[&str]) -> Result<Child> {
        let mut command = self.command(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.world.spawn(HOST, command)
    }

    fn command(&self, program: &[&str]) -> Command {
        // The keeper of the world has its mounts, and every program that it starts.
        let mut command = Command::new("chroot");
        command.arg(self.world.scratch("firewalls").join("root")).args(program);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command
    }
}
