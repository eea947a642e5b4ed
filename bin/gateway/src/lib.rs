//! KeyMeld's gateway: REST, SQLite and the link to the enclaves.
