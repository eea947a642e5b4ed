//! The REST API as data: requests, responses, problem codes and the router.

pub mod http;
