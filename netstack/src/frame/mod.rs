//! Frames between ports: each carries a virtio-net header in front, which says what its sender left
//! for its receiver to do (checksum, segmentation).

pub mod offload;
pub mod staging;
pub mod vnet_header;
