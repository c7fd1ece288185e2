//! podway-ui: the page of `podway ui`: a cluster's pod starts, as a browser shows a page's load.
//!
//! It reads with the user's own kubeconfig and writes nothing: what the user may not see, the page does not
//! have. [`store`] keeps what three watches tell, [`server`] answers from it, [`guard`] lets in only who has
//! the address that the command printed. [`pulls`] asks nodes how
//! far their image pulls are. Every page is made by `podway_flow::html`, which is pure.

pub mod guard;
pub mod pulls;
pub mod select;
pub mod server;
pub mod store;

pub use server::{Options, UiError, serve};
