//! Whom this crate talks to on a bus.

use zbus::proxy::CacheProperties;
use zbus::{Connection, Proxy};

/// An object, its destination and its interface.
pub(crate) struct Object {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
}

/// systemd's manager.
pub(crate) const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// systemd-logind.
pub(crate) const LOGIND: Object = Object {
    destination: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};

impl Object {
    /// The object on this connection. Properties are asked for each time.
    pub(crate) async fn on(&self, connection: &Connection) -> zbus::Result<Proxy<'static>> {
        zbus::proxy::Builder::new(connection)
            .destination(self.destination)
            .path(self.path)
            .interface(self.interface)
            .cache_properties(CacheProperties::No)
            .build()
            .await
    }
}
