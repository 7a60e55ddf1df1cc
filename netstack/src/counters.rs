//! Why frames are dropped.
