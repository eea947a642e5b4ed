//! Simulator, oracles and fuzz targets of KeyMeld.

pub mod corpus;
pub mod model;
pub mod sim;
pub mod stage;
pub mod targets;
