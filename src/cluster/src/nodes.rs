//! The nodes' environments: a network namespace each, joined by a bridge on the host.
//!
//! Everything is convergent: each step looks for its own work first, so that an `up` after a
//! `kill -9` goes on where that one was, and an `up` beside running pods changes nothing. What is
//! made is told to the state before it is made, so that `down` always knows what to look for.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use futures::TryStreamExt as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::network::{Cidr, Network, NodeNetwork, SLOTS};

/// Why a node's environment could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// The kernel refused a step.
    #[error("cannot {what}")]
    Step {
        /// What was tried.
        what: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Every slot is taken.
    #[error("{SLOTS} clusters stand on this machine already; end one with podway down --state-dir DIR")]
    Full,
    /// A link of that name is not ours.
    #[error("the link {name} belongs to {owner}; remove it, or run podway down --state-dir {owner}")]
    Taken {
        /// The link.
        name: String,
        /// Its alias.
        owner: String,
    },
}

fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> NodesError {
    let what = what.into();
    move |e| NodesError::Step { what, source: e.into() }
}

/// The kernel's reason out of a netlink error.
fn reason(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// What exists already is what was asked for.
fn made(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(reason) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Runs `work` on a thread of its own, in the network namespace pinned at `path`.
async fn inside<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let netns = fs::File::open(path)?;
    let tokio = tokio::runtime::Handle::current();
    let (send, receive) = tokio::sync::oneshot::channel();
    // A new thread, never a pool's: it stays in the namespace until it ends.
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _entered = tokio.enter();
        let result = setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| work());
        // The receiver is gone only if the whole `up` was given up.
        drop(send.send(result));
    })?;
    receive.await.map_err(|_| io::Error::other("the namespace thread ended early"))?
}

/// A netlink connection in the host's network namespace, or in one that is pinned.
async fn netlink(netns: Option<&Path>) -> io::Result<Handle> {
    let (connection, handle, _) = match netns {
        Some(path) => inside(path, rtnetlink::new_connection).await?,
        None => rtnetlink::new_connection()?,
    };
    tokio::spawn(connection);
    Ok(handle)
}

/// The index of a link, if there is one of that name.
async fn link(handle: &Handle, name: &str) -> io::Result<Option<u32>> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await.map_err(reason) {
        Ok(message) => Ok(message.map(|m| m.header.index)),
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

async fn delete_link(handle: &Handle, name: &str) -> io::Result<()> {
    match link(handle, name).await? {
        Some(index) => match handle.link().del(index).execute().await.map_err(reason) {
            Err(e) if e.raw_os_error() != Some(nix::libc::ENODEV) => Err(e),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

/// Whose bridge it is: `None` where there is no such link, an empty text where nobody signed it.
fn owner(bridge: &str) -> Option<String> {
    let alias = fs::read_to_string(format!("/sys/class/net/{bridge}/ifalias")).ok()?;
    Some(alias.trim_end().to_owned())
}

/// The network of the cluster in `root`, as its bridge says: for a `down` whose state is gone.
pub(crate) fn find(root: &Path) -> Option<Network> {
    let ours = |n: &Network| owner(&n.bridge()).is_some_and(|o| Path::new(&o) == root);
    (0..SLOTS).filter_map(Network::new).find(ours)
}

const NETNS: &str = "/run/netns";

/// Held while slots are looked at and taken; two clusters must not take the same.
pub(crate) async fn lock() -> Result<fs::File, NodesError> {
    fs::create_dir_all(NETNS).map_err(step("create /run/netns"))?;
    let file = fs::File::open(NETNS).map_err(step("open /run/netns"))?;
    tokio::task::spawn_blocking(move || file.lock().map(|()| file))
        .await
        .map_err(|e| step("lock /run/netns")(io::Error::other(e)))?
        .map_err(step("lock /run/netns"))
}

/// Makes /run/netns a shared mount, as `ip netns` does and wants it: where it is none, a later `ip
/// netns add` would mount it over itself, and our namespaces below could not be unmounted any more.
/// Says whether it was made here.
pub(crate) fn share() -> Result<bool, NodesError> {
    let shared =
        || mount(None::<&str>, NETNS, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match shared() {
        Ok(()) => return Ok(false),
        // Not a mount yet.
        Err(nix::errno::Errno::EINVAL) => {}
        Err(e) => return Err(step("share /run/netns")(e)),
    }
    mount(Some(NETNS), NETNS, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(step("mount /run/netns"))?;
    shared().map_err(step("share /run/netns"))?;
    Ok(true)
}

/// Undoes [`share`], unless somebody has a namespace in it.
pub(crate) fn unshare_netns() -> Result<(), NodesError> {
    let empty = fs::read_dir(NETNS).is_ok_and(|mut d| d.next().is_none());
    if !empty {
        return Ok(());
    }
    match umount2(NETNS, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount (any more).
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(e) => Err(step("unmount /run/netns")(e)),
    }
}

/// The network of the cluster in `root`: that of `recorded`, else the first that nobody has. The
/// caller holds the [`lock`] and records the slot before it makes anything.
pub(crate) fn choose(root: &Path, recorded: Option<u8>) -> Result<Network, NodesError> {
    if let Some(network) = recorded.and_then(Network::new) {
        let name = network.bridge();
        return match owner(&name) {
            // No alias: an `up` of ours was killed between making and signing it.
            Some(owner) if !owner.is_empty() && Path::new(&owner) != root => {
                Err(NodesError::Taken { name, owner })
            }
            _ => Ok(network),
        };
    }
    (0..SLOTS).filter_map(Network::new).find(|n| owner(&n.bridge()).is_none()).ok_or(NodesError::Full)
}

/// Makes the bridge, signed with `root`, and gives it the gateway's address.
pub(crate) async fn bridge(network: Network, root: &Path) -> Result<(), NodesError> {
    let name = network.bridge();
    let host = netlink(None).await.map_err(step("open netlink"))?;
    // An address of its own: a bridge without one takes that of its lowest port, which changes.
    let message = LinkBridge::new(&name).address(network.mac().to_vec()).build();
    made(host.link().add(message).execute().await).map_err(step(format!("make the bridge {name}")))?;
    fs::write(format!("/sys/class/net/{name}/ifalias"), root.as_os_str().as_encoded_bytes())
        .map_err(step(format!("sign the bridge {name} with {}", root.display())))?;
    let index = index(&host, &name).await?;
    address(&host, index, network.gateway(), network.subnet().prefix, &name).await?;
    up(&host, index, &name).await
}

async fn index(handle: &Handle, name: &str) -> Result<u32, NodesError> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let what = format!("find the link {name}");
    link(handle, name).await.and_then(|found| found.ok_or_else(gone)).map_err(step(what))
}

async fn address(
    handle: &Handle,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
    name: &str,
) -> Result<(), NodesError> {
    made(handle.address().add(index, IpAddr::V4(address), prefix).execute().await)
        .map_err(step(format!("give {address} to {name}")))
}

async fn up(handle: &Handle, index: u32, name: &str) -> Result<(), NodesError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.map_err(reason).map_err(step(format!("bring up {name}")))
}

async fn route(handle: &Handle, to: Cidr, via: Ipv4Addr) -> Result<(), NodesError> {
    let message =
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.address, to.prefix).gateway(via).build();
    made(handle.route().add(message).execute().await).map_err(step(format!("route {to} via {via}")))
}

/// Makes one node's environment; `count` is how many nodes there are, for the routes between them.
pub(crate) async fn node(network: Network, node: NodeNetwork, count: u8) -> Result<(), NodesError> {
    let path = node.netns_path();
    pin(&path).await?;
    let host = netlink(None).await.map_err(step("open netlink"))?;
    let within = netlink(Some(&path)).await.map_err(step(format!("enter {}", path.display())))?;
    let (host_end, loose_end) = (node.host_end(), node.loose_end());
    if link(&within, "eth0").await.map_err(step("find eth0"))?.is_none() {
        // A cable that did not get to its namespace: made anew.
        delete_link(&host, &host_end).await.map_err(step(format!("remove {host_end}")))?;
        host.link()
            .add(LinkVeth::new(&host_end, &loose_end).build())
            .execute()
            .await
            .map_err(reason)
            .map_err(step(format!("make the cable {host_end}")))?;
        let netns = fs::File::open(&path).map_err(step(format!("open {}", path.display())))?;
        let loose = index(&host, &loose_end).await?;
        let message = LinkUnspec::new_with_index(loose).setns_by_fd(netns.as_raw_fd()).name("eth0").build();
        host.link()
            .set(message)
            .execute()
            .await
            .map_err(reason)
            .map_err(step(format!("move {loose_end} into {}", path.display())))?;
    }
    let bridge = index(&host, &network.bridge()).await?;
    let message = LinkUnspec::new_with_index(index(&host, &host_end).await?).controller(bridge).up().build();
    let joined = host.link().set(message).execute().await.map_err(reason);
    joined.map_err(step(format!("join {host_end} to {}", network.bridge())))?;
    route_from_host(&host, node).await?;

    up(&within, index(&within, "lo").await?, "lo").await?;
    let eth0 = index(&within, "eth0").await?;
    let message = LinkUnspec::new_with_index(eth0).address(node.mac().to_vec()).build();
    let set = within.link().set(message).execute().await.map_err(reason);
    set.map_err(step("give eth0 its hardware address"))?;
    address(&within, eth0, node.address(), network.subnet().prefix, "eth0").await?;
    up(&within, eth0, "eth0").await?;
    route(&within, Cidr { address: Ipv4Addr::UNSPECIFIED, prefix: 0 }, network.gateway()).await?;
    for other in network.nodes(count).filter(|n| *n != node) {
        route(&within, other.pods(), other.address()).await?;
    }
    inside(&path, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
        .await
        .map_err(step(format!("let {} forward", node.netns())))
}

/// The host reaches the pods: the API server calls webhooks, and so may whoever sits at it.
async fn route_from_host(host: &Handle, node: NodeNetwork) -> Result<(), NodesError> {
    route(host, node.pods(), node.address()).await
}

/// Whether a namespace is pinned at `path`: the file alone is there after a crash or a reboot.
fn pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Makes a network namespace and pins it at `path`.
async fn pin(path: &Path) -> Result<(), NodesError> {
    if pinned(path) {
        return Ok(());
    }
    let what = format!("make the network namespace {}", path.display());
    let path = path.to_owned();
    let (send, receive) = tokio::sync::oneshot::channel();
    let work = move || -> io::Result<()> {
        fs::File::create(&path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    };
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || drop(send.send(work())))
        .map_err(step(what.clone()))?;
    match receive.await {
        Ok(result) => result.map_err(step(what)),
        Err(_) => Err(step(what)(io::Error::other("the namespace thread ended early"))),
    }
}

/// Removes cable and namespace of a node, whether or not they are there.
pub(crate) async fn remove_node(node: NodeNetwork) -> Result<(), NodesError> {
    let host = netlink(None).await.map_err(step("open netlink"))?;
    for name in [node.host_end(), node.loose_end()] {
        delete_link(&host, &name).await.map_err(step(format!("remove {name}")))?;
    }
    let path = node.netns_path();
    while pinned(&path) {
        umount2(&path, MntFlags::MNT_DETACH).map_err(step(format!("unmount {}", path.display())))?;
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(step(format!("remove {}", path.display()))(e)),
        _ => Ok(()),
    }
}

/// Removes the bridge, if it is that of the cluster in `root` (or was never signed).
pub(crate) async fn remove_bridge(network: Network, root: &Path) -> Result<(), NodesError> {
    let name = network.bridge();
    match owner(&name) {
        Some(owner) if owner.is_empty() || Path::new(&owner) == root => {
            let host = netlink(None).await.map_err(step("open netlink"))?;
            delete_link(&host, &name).await.map_err(step(format!("remove {name}")))
        }
        // Another's, or none.
        _ => Ok(()),
    }
}

/// Whether the bridge of any cluster is there.
pub(crate) fn any_bridge() -> bool {
    (0..SLOTS).filter_map(Network::new).any(|n| owner(&n.bridge()).is_some())
}
