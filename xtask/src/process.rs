//! Starts commands under supervision, as the user or as root, and ends them when this process is to stop.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP: AtomicBool = AtomicBool::new(false);

/// How often a quiet command is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often sudo is reminded, so that it does not ask again in the middle of a long run.
const REMIND: Duration = Duration::from_mins(1);

extern "C" fn remember(_: nix::libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Turns Ctrl-C and the requests to end into a flag, so that what runs is tidied up first.
pub fn catch_signals() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(remember), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { sigaction(signal, &action) }.context("cannot catch signals")?;
    }
    Ok(())
}

/// Asks this process to stop, as a signal would.
pub fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// Whether someone asked this process to stop.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command to run.
pub struct Job {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(String, OsString)>,
    dir: PathBuf,
    root: bool,
}

/// What a command came to.
pub struct Ran {
    /// The exit status of the command.
    pub status: ExitStatus,
    /// Its stdout.
    pub out: String,
    /// Its stdout and stderr, line by line as they came.
    pub all: String,
}

enum Piece {
    Out(String),
    Err(String),
}

impl Job {
    /// A command that runs in the workspace's folder as the user.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: crate::root().to_owned(),
            root: false,
        }
    }

    /// The cargo that runs this.
    pub fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs in another folder.
    pub fn dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.dir);
        self
    }

    /// Runs as root, through sudo where this process is not.
    pub fn for_root(mut self) -> Self {
        self.root = true;
        self
    }

    /// The command as one would type it.
    pub fn shown(&self) -> String {
        let words =
            std::iter::once(&self.program).chain(&self.args).map(|word| word.to_string_lossy().into_owned());
        let sudo = (self.root && !is_root()).then(|| "sudo".to_owned());
        sudo.into_iter().chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs to the end; each line is given to `watch` as it comes.
    pub fn run(&self, mut watch: impl FnMut(&str)) -> Result<Ran> {
        let mut child = self.spawn(Stdio::piped(), Stdio::piped())?;
        let (sender, pieces) = channel();
        if let Some(out) = child.stdout.take() {
            read(out, sender.clone(), Piece::Out);
        }
        if let Some(err) = child.stderr.take() {
            read(err, sender, Piece::Err);
        }
        // Held until the end: closing it tells the supervisor to stop, and waiting would close it.
        let mut alive = child.stdin.take();
        let (out, all) = collect(&mut alive, &pieces, &mut watch);
        let status = child.wait().with_context(|| format!("cannot wait for `{}`", self.shown()))?;
        Ok(Ran { status, out, all })
    }

    /// Runs to the end with its output on our own stdout and stderr.
    pub fn show(&self) -> Result<ExitStatus> {
        let mut child = self.spawn(Stdio::inherit(), Stdio::inherit())?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if stopped() {
                drop(child.stdin.take());
            }
            std::thread::sleep(LOOK / 4);
        }
    }

    fn spawn(&self, out: Stdio, err: Stdio) -> Result<Child> {
        if stopped() {
            bail!("stopped before `{}`", self.shown());
        }
        let myself = myself();
        let mut command = if self.root && !is_root() {
            allow_sudo()?;
            let mut sudo = Command::new("sudo");
            sudo.arg("--").arg(myself);
            sudo
        } else {
            Command::new(myself)
        };
        command.arg("supervise").arg("--dir").arg(&self.dir);
        for (name, value) in &self.envs {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg("--env").arg(pair);
        }
        command.arg("--").arg(&self.program).args(&self.args);
        command.stdin(Stdio::piped()).stdout(out).stderr(err);
        command.spawn().with_context(|| format!("cannot start `{}`", self.shown()))
    }
}

/// This very program, which a build that it starts may have replaced: the path leads to the file that runs.
pub fn myself() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}

/// Whether a command can be found.
pub fn exists(command: &str) -> bool {
    find(command).is_some()
}

/// Where a command lies; the folders of root's commands are looked at even if the user's `PATH` lacks them.
pub fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(command))
        .find(|file| file.is_file())
}

/// Makes sure that commands can be run as root: asks for the password now rather than in the middle.
pub fn allow_sudo() -> Result<()> {
    static ALLOWED: OnceLock<Result<(), String>> = OnceLock::new();
    if is_root() {
        return Ok(());
    }
    ALLOWED
        .get_or_init(|| ask_sudo().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|text| anyhow!(text))
}

fn ask_sudo() -> Result<()> {
    if !exists("sudo") {
        bail!("root is needed for this, and there is no `sudo` here; run it as root");
    }
    let quiet = !std::io::stdin().is_terminal();
    let mut command = Command::new("sudo");
    if quiet {
        command.arg("--non-interactive");
    } else {
        crate::say::line("  root is needed for network namespaces and eBPF: sudo may ask for your password");
    }
    if !command.arg("--validate").status().context("cannot run `sudo`")?.success() {
        bail!(
            "root is needed for this, and `sudo` refuses; run it as root, or with a sudo that needs no password"
        );
    }
    std::thread::spawn(|| {
        while !stopped() {
            std::thread::sleep(REMIND);
            let _ =
                Command::new("sudo").args(["--non-interactive", "--validate"]).stderr(Stdio::null()).status();
        }
    });
    Ok(())
}

fn read(from: impl Read + Send + 'static, to: Sender<Piece>, kind: fn(String) -> Piece) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(lines.read_until(b'\n', &mut bytes), Ok(length) if length > 0) {
            if to.send(kind(String::from_utf8_lossy(&bytes).into_owned())).is_err() {
                return;
            }
            bytes.clear();
        }
    });
}

/// Gathers the output until both pipes are closed; on a request to stop it closes the supervisor's stdin and goes on.
fn collect(
    alive: &mut Option<ChildStdin>,
    pieces: &Receiver<Piece>,
    watch: &mut dyn FnMut(&str),
) -> (String, String) {
    let (mut out, mut all) = (String::new(), String::new());
    let mut last = String::new();
    loop {
        match pieces.recv_timeout(LOOK) {
            Ok(piece) => {
                let line = match piece {
                    Piece::Out(line) => {
                        out.push_str(&line);
                        line
                    }
                    Piece::Err(line) => line,
                };
                all.push_str(&line);
                watch(&line);
                last = line;
            }
            Err(RecvTimeoutError::Timeout) => watch(&last),
            Err(RecvTimeoutError::Disconnected) => return (out, all),
        }
        if stopped() {
            drop(alive.take());
        }
    }
}
