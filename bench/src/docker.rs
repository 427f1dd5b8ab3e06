//! netfilter as Docker leaves it on a host: the chains and their order, as in moby's own golden files
//! (`integration/network/bridge/iptablesdoc`), for two networks and so many containers that publish a port each.

use std::fmt::Write as _;

/// How a version of Docker keeps networks apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Until 27: DOCKER-ISOLATION in FORWARD, behind connection tracking.
    Isolation,
    /// Since 28: a rule in raw PREROUTING for each container, before it.
    Raw,
}

/// The port that containers serve, and the first of the host's that lead there.
pub const SERVED: u16 = 80;
const FIRST: u16 = 20_000;

/// The host's port that leads to the receiver, the last of so many containers.
pub fn published(containers: u16) -> u16 {
    FIRST + containers - 1
}

/// What `iptables-restore` takes. The receiver is the last of the containers on its bridge; where it is `open`, an operator has allowed
/// calls from the other network, and its own rule in raw is away.
pub fn rules(form: Form, containers: u32, receiver: &str, open: bool) -> String {
    // The others; where the receiver is open it is one more.
    let others: Vec<String> =
        (1..containers).map(|n| format!("10.81.{}.{}", 2 + n / 250, 1 + n % 250)).collect();
    let all = || others.iter().map(String::as_str).chain([receiver]);
    let mut text = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n".to_owned();
    if form == Form::Raw {
        for address in all().filter(|address| !open || *address != receiver) {
            let _ = writeln!(text, "-A PREROUTING -d {address}/32 ! -i hybr1 -j DROP");
        }
    }
    text += "COMMIT\n*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s 10.80.0.0/16 ! -o hybr0 -j MASQUERADE\n\
             -A POSTROUTING -s 10.81.0.0/16 ! -o hybr1 -j MASQUERADE\n";
    for (n, address) in all().enumerate() {
        let _ = writeln!(
            text,
            "-A DOCKER ! -i hybr1 -p tcp --dport {} -j DNAT --to-destination {address}:{SERVED}",
            usize::from(FIRST) + n
        );
    }
    text += "COMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n:DOCKER -\n:DOCKER-USER -\n:DOCKER-ISOLATION-STAGE-1 -\n\
             :DOCKER-ISOLATION-STAGE-2 -\n";
    match form {
        Form::Isolation => {
            text += "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n";
            for bridge in ["hybr0", "hybr1"] {
                let _ = writeln!(
                    text,
                    "-A FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                     -A FORWARD -o {bridge} -j DOCKER\n\
                     -A FORWARD -i {bridge} ! -o {bridge} -j ACCEPT\n\
                     -A FORWARD -i {bridge} -o {bridge} -j ACCEPT"
                );
            }
        }
        Form::Raw => {
            text += ":DOCKER-FORWARD -\n:DOCKER-CT -\n:DOCKER-BRIDGE -\n\
                     -A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n\
                     -A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
                     -A DOCKER-FORWARD -j DOCKER-BRIDGE\n";
            for bridge in ["hybr0", "hybr1"] {
                let _ = writeln!(
                    text,
                    "-A DOCKER-FORWARD -i {bridge} -j ACCEPT\n\
                     -A DOCKER-CT -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                     -A DOCKER-BRIDGE -o {bridge} -j DOCKER"
                );
            }
        }
    }
    for bridge in ["hybr0", "hybr1"] {
        let _ = writeln!(
            text,
            "-A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2\n\
             -A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP"
        );
    }
    for address in all() {
        let _ = writeln!(
            text,
            "-A DOCKER -d {address}/32 ! -i hybr1 -o hybr1 -p tcp -m tcp --dport {SERVED} -j ACCEPT"
        );
    }
    text += "-A DOCKER ! -i hybr0 -o hybr0 -j DROP\n-A DOCKER ! -i hybr1 -o hybr1 -j DROP\n";
    if open {
        text += "-A DOCKER-USER -s 10.80.0.0/16 -d 10.81.0.0/16 -j ACCEPT\n-A DOCKER-USER -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
    }
    text + "COMMIT\n"
}

/// One rule of nftables at a port, and nothing else: the least that netfilter can do.
pub fn netdev(port: &str, receiver: &str) -> String {
    format!(
        "table netdev hydra {{\n chain in {{\n  type filter hook ingress device \"{port}\" priority 0; policy accept;\n  \
         ip daddr {receiver} drop\n }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_its_rules_and_the_open_one_none_that_drops_it() {
        let count = |text: &str, word: &str| text.lines().filter(|line| line.contains(word)).count();
        let closed = rules(Form::Raw, 100, "10.81.0.11", false);
        assert_eq!((count(&closed, "! -i hybr1 -j DROP"), count(&closed, "DNAT")), (100, 100));
        let led = format!("--dport {} -j DNAT --to-destination 10.81.0.11:80", published(100));
        assert_eq!(count(&closed, &led), 1, "the receiver is the last");
        let open = rules(Form::Raw, 100, "10.81.0.11", true);
        assert_eq!(count(&open, "! -i hybr1 -j DROP"), 99);
        assert!(!open.contains("-d 10.81.0.11/32 ! -i hybr1 -j DROP"));
        assert_eq!(count(&rules(Form::Isolation, 10, "10.81.0.11", false), "! -i hybr1 -j DROP"), 0);
    }
}
