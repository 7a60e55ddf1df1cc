//! Messages of a monitor as bytes, by their number in the vhost-user specification.
#![expect(missing_docs, reason = "named as in the specification")]

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// A message with a valid header.
pub fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("messages are short");
    let mut bytes: Vec<u8> = [request, 1, len].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend_from_slice(body);
    bytes
}

/// The body of most messages: a ring and a number.
pub fn pair(ring: u32, number: u32) -> Vec<u8> {
    [ring, number].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// One region of memory as messages describe it.
pub fn region(guest: u64, len: u64, user: u64, offset: u64) -> Vec<u8> {
    [guest, len, user, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// The body of `SET_LOG_BASE`.
pub fn log(len: u64, offset: u64) -> Vec<u8> {
    [len, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}
