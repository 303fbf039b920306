//! Over loopback, between transports and against hand-made peers.

mod carrying;
mod failing;
mod foreign;
mod support;
