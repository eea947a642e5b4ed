//! KeyMeld's command line: gateway, enclave and demo.
