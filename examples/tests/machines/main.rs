//! The three machines in one thread, on a real SQLite file where it matters: crashes, what a host sees, what a
//! hostile gateway can tell a client.

mod client_key;
mod client_keygen;
mod client_looks;
mod client_proofs;
mod client_signing;
mod client_wire;
mod host_sees_ciphertext;
mod killed_at_each_commit;
mod lies;
mod story;
