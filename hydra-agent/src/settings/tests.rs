//! What flags, variables and the file make of each other.

use super::*;
use crate::cgroup::Place;

fn flags(words: &[&str]) -> Flags {
    let words = ["hydra-agent", "run"].iter().chain(words);
    match Cli::try_parse_from(words).unwrap().action {
        Action::Run(flags) | Action::Purge(flags) => flags,
    }
}

fn file(text: &str) -> Result<File, String> {
    File::parse(text, Path::new("agent.yaml")).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_the_documented_ones() {
    let s = Settings::merge(Flags::default(), File::default()).unwrap();
    assert_eq!(s.policy, PolicyFile { path: "/etc/hydra/policy.yaml".into(), named: false });
    assert_eq!(s.docker, Docker::Auto);
    assert_eq!(s.directories.state, Path::new("/var/lib/hydra"));
    assert_eq!(s.directories.socket(), Path::new("/run/hydra/agent.sock"));
    assert_eq!(s.directories.bpffs, Path::new("/sys/fs/bpf/hydra"));
    assert_eq!(s.listen, Some("127.0.0.1:9473".parse().unwrap()));
    assert_eq!(s.netns_dir, Path::new("/run/netns"));
    assert!(s.routes);
    assert_eq!((s.attach, s.predrop), (Attach::Auto, Predrop::Off));
    assert!(!s.labels, "a container must not choose its own rights");
    assert_eq!(s.pickup, Pickup(3600));
    assert_eq!((s.flows, s.flow_share), (Flows(131_072), FlowShare(25)));
    assert_eq!(s.log, "info");
}

#[test]
fn the_example_file_holds_the_defaults() {
    let example = file(include_str!("../../../packaging/agent.yaml")).unwrap();
    let defaults = Settings::merge(Flags::default(), File::default()).unwrap();
    let mut merged = Settings::merge(Flags::default(), example.clone()).unwrap();
    assert!(merged.policy.named);
    merged.policy.named = false;
    assert_eq!(merged, defaults);
    let File {
        policy,
        docker,
        state_dir,
        run_dir,
        bpffs,
        listen,
        netns_dir,
        routes,
        attach,
        uplinks,
        predrop,
        cgroup,
        labels,
        pickup,
        flows,
        flow_share,
        log,
    } = example;
    assert!(policy.is_some() && docker.is_some() && state_dir.is_some() && run_dir.is_some());
    assert!(bpffs.is_some() && listen.is_some() && netns_dir.is_some() && routes.is_some());
    assert!(
        uplinks.is_some() && predrop.is_some() && cgroup.is_some() && flows.is_some() && flow_share.is_some()
    );
    assert!(attach.is_some() && labels.is_some() && pickup.is_some() && log.is_some(), "every key is shown");
}

#[test]
fn a_flag_stands_above_the_file() {
    let file = file("state-dir: /a\nrun-dir: /b\nlisten: none\nroutes: false\n").unwrap();
    let s = Settings::merge(flags(&["--state-dir", "/c", "--routes", "true"]), file).unwrap();
    assert_eq!(s.directories.state, Path::new("/c"));
    assert_eq!(s.directories.run, Path::new("/b"));
    assert_eq!(s.listen, None);
    assert!(s.routes);
}

#[test]
fn every_key_of_the_file_is_read() {
    let text = "policy: /p\ndocker: none\nstate-dir: /s\nrun-dir: /r\nbpffs: /b\nlisten: '[::1]:1'\n\
        netns-dir: /n\nroutes: false\nattach: clsact\nuplinks: [eth0, wg0]\npredrop: native\ncgroup: /c\nlabels: true\npickup: 0\n\
        flows: 1024\nflow-share: 100%\nlog: debug\n";
    let s = Settings::merge(Flags::default(), file(text).unwrap()).unwrap();
    assert_eq!(s.policy, PolicyFile { path: "/p".into(), named: true });
    assert_eq!(s.docker, Docker::None);
    assert_eq!(s.listen, Some("[::1]:1".parse().unwrap()));
    assert_eq!((s.routes, s.labels, s.attach), (false, true, Attach::Clsact));
    assert_eq!(s.uplinks, Uplinks::Named(["eth0".into(), "wg0".into()].into()));
    assert_eq!((s.predrop, s.cgroup), (Predrop::Native, Place::At("/c".into())));
    assert_eq!((s.pickup, s.log.as_str()), (Pickup(0), "debug"));
    assert_eq!((s.flows, s.flow_share), (Flows(1024), FlowShare(100)));
}

#[test]
fn a_duration_has_its_unit() {
    for (text, seconds) in
        [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("365d", 31_536_000)]
    {
        assert_eq!(text.parse(), Ok(Pickup(seconds)), "{text}");
    }
    for text in ["", "1", "h", "-1h", "1.5h", "1h30m", "1w", "366d", "99999999999s", " 1h"] {
        assert!(text.parse::<Pickup>().is_err(), "{text}");
    }
}

#[test]
fn unknown_and_doubled_keys_and_wrong_values_are_refused_with_their_place() {
    for (text, place, what) in [
        ("state_dir: /a\n", "agent.yaml:1:1", "state_dir"),
        ("routes: true\nroutes: false\n", "agent.yaml:2:1", "duplicate"),
        ("\nroutes: yes\n", "agent.yaml:2:9", "bool"),
        ("docker: tcp://1.2.3.4\n", "agent.yaml:1:9", "the absolute path of a unix socket"),
        ("listen: 0.0.0.0:9473\n", "agent.yaml:1:9", "a loopback address with its port"),
        ("listen: 9473\n", "agent.yaml:1:9", "an address with its port"),
        ("uplinks: [eth0, this-name-is-too-long]\n", "agent.yaml:1:10", "`this-name-is-too-long` is none"),
        ("uplinks: []\n", "agent.yaml:1:10", "the list is empty"),
        ("uplinks: [auto]\n", "agent.yaml:1:10", "`auto` is none"),
        ("uplinks: { eth0: true }\n", "agent.yaml:1:10", "`auto`, `none` or a list of names of interfaces"),
        ("uplink: auto\n", "agent.yaml:1:1", "uplink"),
        ("attach: xdp\n", "agent.yaml:1:9", "`auto`, `tcx` or `clsact`"),
        ("predrop: on\n", "agent.yaml:1:10", "`off`, `auto`, `native` or `generic`"),
        ("predrop: true\n", "agent.yaml:1:10", "`off`, `auto`, `native` or `generic`"),
        ("pickup: 60\n", "agent.yaml:1:9", "as in `30m`"),
        ("flows: 1023\n", "agent.yaml:1:8", "a number from 1024 to 4194304"),
        ("flows: 4194305\n", "agent.yaml:1:8", "a number from 1024 to 4194304"),
        ("flows: many\n", "agent.yaml:1:8", "a number from 1024 to 4194304"),
        ("flow-share: 0%\n", "agent.yaml:1:13", "as in `25%`"),
        ("flow-share: 25\n", "agent.yaml:1:13", "as in `25%`"),
    ] {
        let error = file(text).unwrap_err();
        assert!(error.contains(place) && error.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn uplinks_are_a_word_or_names() {
    let s = |words: &[&str]| Settings::merge(flags(words), File::default()).unwrap().uplinks;
    assert_eq!(s(&[]), Uplinks::Auto);
    assert_eq!(s(&["--uplinks", "none"]), Uplinks::None);
    assert_eq!(s(&["--uplinks", "eth0,wg0"]), Uplinks::Named(["eth0".into(), "wg0".into()].into()));
    assert_eq!(file("uplinks: auto").unwrap().uplinks, Some(Uplinks::Auto));
    assert_eq!(file("uplinks: eth0").unwrap().uplinks, Some(Uplinks::Named(["eth0".into()].into())));
    assert!("eth0,,eth1".parse::<Uplinks>().is_err());
    assert!("eth0 eth1".parse::<Uplinks>().is_err());
}

#[test]
fn a_file_of_comments_is_empty() {
    assert_eq!(file("# nothing\n\n").unwrap(), File::default());
    assert_eq!(file("").unwrap(), File::default());
}

#[test]
fn docker_takes_a_path_or_a_url_of_a_unix_socket() {
    assert_eq!("unix:///run/d.sock".parse(), Ok(Docker::Socket("/run/d.sock".into())));
    assert_eq!("/run/d.sock".parse(), Ok(Docker::Socket("/run/d.sock".into())));
    assert!("docker.sock".parse::<Docker>().is_err());
}

#[test]
fn a_named_settings_file_must_be_there() {
    let error = Settings::load(flags(&["--config", "/nonexistent/hy.yaml"])).unwrap_err();
    assert!(matches!(error, SettingsError::Unreadable { .. }), "{error}");
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}
