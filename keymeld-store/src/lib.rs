//! SQLite storage adapter of the KeyMeld gateway.
