//! Writing a pod's status: what of it changed ([`diff`]) and when it is worth a write ([`writer`]).
pub mod diff;
pub mod writer;
