//! Arguments of vfkit and of krunkit, which has vfkit's (vfkit `doc/usage.md`).

use super::Nic;

/// What puts a guest onto its place. The socket it sends from is its own business.
pub(crate) fn arguments(nic: &Nic) -> Vec<String> {
    let Nic { socket, mac, .. } = nic;
    vec!["--device".to_owned(), format!("virtio-net,unixSocketPath={socket},mac={mac}")]
}

#[cfg(test)]
mod tests {
    use lichen_api::VmAttachment;

    use super::super::example;
    use super::*;

    #[test]
    fn the_socket_is_sent_to() {
        assert_eq!(
            arguments(&example(VmAttachment::Dgram)),
            ["--device", "virtio-net,unixSocketPath=/run/db.sock,mac=02:4c:0a:58:00:02"]
        );
    }
}
