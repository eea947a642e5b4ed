//! The public listener of a gateway process under torture, in the clear and under TLS: it serves others all
//! the while, lives, and gives back whatever it took.
//!
//! `ci/torture` runs the same with larger numbers and prints a line for each case.

mod crowds;
mod requests;
mod rig;
