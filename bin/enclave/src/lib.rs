//! KeyMeld's enclave: keygen, nonces and partial signatures.
