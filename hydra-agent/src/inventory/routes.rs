//! Routes inside the stacks of containers: which there are, and the agent's own ones, told from all others by their protocol
//! number. Everything happens on a thread that enters the namespace and ends there.

#![expect(clippy::wildcard_enum_match_arm, reason = "what the kernel may tell of a route is an open list")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error as RequestError, RouteMessageBuilder};
use serde::Serialize;

use super::namespaces::{self, Opened};
use super::netlink::{Interface, Kernel, NetlinkError};
use super::snapshot::Stack;

/// The protocol number of the agent's routes: `h`. `ip route show proto 104` lists them.
pub const PROTOCOL: u8 = 0x68;

/// A route that the agent wants in a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By whom.
    pub gateway: IpAddr,
    /// Out of which interface of the stack.
    pub interface: String,
}

impl std::fmt::Display for Route {
    /// As `ip route` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} via {} dev {}", self.destination, self.gateway, self.interface)
    }
}

/// A route that is there: of the main table, to a place (blackholes and their like are left out).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct StackRoute {
    /// Where to; the default route is `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// By whom; none for what is on the link, the first of several.
    pub gateway: Option<IpAddr>,
    /// Out of which interface, empty if that has none of its own.
    pub interface: String,
    /// The agent made it.
    pub ours: bool,
}

/// Why routes could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No file leads to the stack.
    #[error("routes of `{stack}`: no file leads to its namespace")]
    NoPath {
        /// Its name.
        stack: String,
    },
    /// It can't be opened or entered, or is another one by now.
    #[error("routes of `{stack}`: {source}")]
    Namespace {
        /// Its name.
        stack: String,
        /// Why.
        source: namespaces::NamespaceError,
    },
    /// Inside, the kernel does not answer.
    #[error("routes of `{stack}`: {source}")]
    Netlink {
        /// Its name.
        stack: String,
        /// Why.
        source: NetlinkError,
    },
    /// No thread, or no runtime on it.
    #[error("routes of `{stack}`: no thread to enter `{}` with: {source}", path.display())]
    Thread {
        /// Its name.
        stack: String,
        /// Its file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The interface is not there.
    #[error("route `{route}` could not be added to `{stack}`: it has no interface `{}`", route.interface)]
    NoInterface {
        /// Its name.
        stack: String,
        /// Which.
        route: Box<Route>,
    },
    /// The kernel refused.
    #[error("route `{route}` could not be {what} `{stack}`: {why}")]
    Refused {
        /// `added to` or `removed from`.
        what: &'static str,
        /// Its name.
        stack: String,
        /// Which.
        route: Box<Route>,
        /// The kernel's word.
        why: String,
    },
}

/// The routes of a stack, in order.
pub async fn list(stack: &Stack) -> Result<Vec<StackRoute>, RouteError> {
    inside(stack, async |kernel, name| routes_here(kernel).await.map_err(|source| netlink(name, source)))
        .await
}

/// Adds routes. One that is there is fine, and so is another's to the same place: it is left as it is. Goes on after an error.
pub async fn add(stack: &Stack, routes: &[Route]) -> Vec<RouteError> {
    change(stack, routes.to_vec(), Vec::new()).await
}

/// Removes routes of ours. One that is not there is fine; others' are left as they are. Goes on after an error.
pub async fn remove(stack: &Stack, routes: &[Route]) -> Vec<RouteError> {
    change(stack, Vec::new(), routes.to_vec()).await
}

/// Removes, then adds, in one visit.
pub async fn change(stack: &Stack, add: Vec<Route>, remove: Vec<Route>) -> Vec<RouteError> {
    if add.is_empty() && remove.is_empty() {
        return Vec::new();
    }
    let changed = inside(stack, async move |kernel, name| {
        let links = kernel.links(None).await.map_err(|source| netlink(name, source))?;
        let mut errors = Vec::new();
        for route in remove {
            errors.extend(remove_here(kernel, name, &links, route).await.err());
        }
        for route in add {
            errors.extend(add_here(kernel, name, &links, route).await.err());
        }
        Ok(errors)
    })
    .await;
    changed.unwrap_or_else(|error| vec![error])
}

/// Whether a stack with these routes sends packets to that address anywhere at all.
pub fn leads_to(routes: &[StackRoute], address: IpAddr) -> bool {
    routes.iter().any(|route| route.destination.contains(&address))
}

/// Runs `work` on a thread inside the stack's namespace, with a connection of that namespace.
async fn inside<T, F>(stack: &Stack, work: F) -> Result<T, RouteError>
where
    T: Send + 'static,
    F: AsyncFnOnce(&Kernel, &str) -> Result<T, RouteError> + Send + 'static,
{
    let Some(path) = stack.netns.clone() else {
        return Err(RouteError::NoPath { stack: stack.name.clone() });
    };
    let (name, key, thread_path) = (stack.name.clone(), stack.key.clone(), path.clone());
    let no_thread = |source| RouteError::Thread { stack: stack.name.clone(), path, source };
    let done = namespaces::on_own_thread(move || {
        let namespace = |source| RouteError::Namespace { stack: name.clone(), source };
        let opened = Opened::at(&thread_path).map_err(namespace)?;
        let id = namespaces::enter_and_identify(&opened).map_err(namespace)?.to_string();
        // A process number can have another owner by now: that one's routes are not ours to touch.
        if key.split('/').next() != Some(id.as_str()) {
            return Err(namespace(namespaces::NamespaceError::Replaced { path: thread_path }));
        }
        drop(opened);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| RouteError::Thread { stack: name.clone(), path: thread_path, source })?;
        runtime.block_on(async {
            let kernel = Kernel::open().map_err(|source| netlink(&name, source))?;
            work(&kernel, &name).await
        })
    });
    done.await.map_err(no_thread)?
}

fn netlink(stack: &str, source: NetlinkError) -> RouteError {
    RouteError::Netlink { stack: stack.to_owned(), source }
}

async fn routes_here(kernel: &Kernel) -> Result<Vec<StackRoute>, NetlinkError> {
    let links = kernel.links(None).await?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in kernel.list("the list of routes", RouteNetlinkMessage::GetRoute(request)).await? {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                routes.extend(route_of(&message, &links));
            }
        }
    }
    routes.sort_unstable();
    routes.dedup();
    Ok(routes)
}

fn route_of(message: &RouteMessage, links: &[Interface]) -> Option<StackRoute> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let everywhere: IpAddr = if header.address_family == AddressFamily::Inet {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let (mut destination, mut gateway, mut index) = (everywhere, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Gateway(by) => gateway = ip(by),
            RouteAttribute::Via(RouteVia::Inet6(by)) => gateway = Some((*by).into()),
            RouteAttribute::Oif(out) => index = Some(*out),
            RouteAttribute::MultiPath(hops) => {
                let first = hops.first()?;
                index = Some(first.interface_index);
                gateway = first.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(by) => ip(by),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let interface =
        links.iter().find(|l| Some(l.index) == index).map_or_else(String::new, |l| l.name.clone());
    Some(StackRoute {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        gateway,
        interface,
        ours: header.protocol == RouteProtocol::Other(PROTOCOL),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn index_of(links: &[Interface], name: &str) -> Option<u32> {
    links.iter().find(|l| l.name == name).map(|l| l.index)
}

async fn add_here(kernel: &Kernel, stack: &str, links: &[Interface], route: Route) -> Result<(), RouteError> {
    let Some(index) = index_of(links, &route.interface) else {
        return Err(RouteError::NoInterface { stack: stack.to_owned(), route: Box::new(route) });
    };
    let refused = |why: String| RouteError::Refused {
        what: "added to",
        stack: stack.to_owned(),
        route: Box::new(route.clone()),
        why,
    };
    let message = message_of(&route, index).map_err(&refused)?;
    let handle = kernel.handle().route();
    let error = match handle.add(message.clone()).execute().await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if errno(&error) != Some(libc::EEXIST) {
        return Err(refused(why(&error)));
    }
    let there = routes_here(kernel).await.map_err(|source| netlink(stack, source))?;
    let rivals: Vec<_> = there.into_iter().filter(|r| r.destination == route.destination).collect();
    let same = |r: &StackRoute| r.gateway == Some(route.gateway) && r.interface == route.interface;
    if rivals.iter().any(|r| !r.ours || same(r)) {
        return Ok(());
    }
    // Ours, by a gateway of before.
    for rival in rivals {
        let old = rival.gateway.zip(index_of(links, &rival.interface)).and_then(|(gateway, index)| {
            let old = Route { destination: rival.destination, gateway, interface: rival.interface };
            message_of(&old, index).ok()
        });
        if let Some(old) = old {
            handle.del(old).execute().await.map_err(|e| refused(why(&e)))?;
        }
    }
    handle.add(message).execute().await.map_err(|e| refused(why(&e)))
}

async fn remove_here(
    kernel: &Kernel,
    stack: &str,
    links: &[Interface],
    route: Route,
) -> Result<(), RouteError> {
    // With its interface a route is gone too.
    let Some(index) = index_of(links, &route.interface) else { return Ok(()) };
    let refused = |why: String| RouteError::Refused {
        what: "removed from",
        stack: stack.to_owned(),
        route: Box::new(route.clone()),
        why,
    };
    let message = message_of(&route, index).map_err(&refused)?;
    match kernel.handle().route().del(message).execute().await {
        Ok(()) => Ok(()),
        Err(error) if matches!(errno(&error), Some(libc::ESRCH | libc::ENODEV)) => Ok(()),
        Err(error) => Err(refused(why(&error))),
    }
}

fn message_of(route: &Route, index: u32) -> Result<RouteMessage, String> {
    let to = route.destination.trunc();
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .and_then(|builder| builder.gateway(route.gateway))
        .map_err(|error| error.to_string())?
        .output_interface(index)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .build();
    Ok(message)
}

fn errno(error: &RequestError) -> Option<i32> {
    match error {
        RequestError::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn why(error: &RequestError) -> String {
    match error {
        RequestError::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}
