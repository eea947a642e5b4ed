//! Simulator, oracles and fuzz targets of KeyMeld.
