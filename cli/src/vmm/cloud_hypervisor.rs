//! Arguments of cloud-hypervisor (its `docs/vhost-user-net-testing.md`).

use super::Nic;

/// What puts a guest with that much memory onto its place.
pub(crate) fn arguments(nic: &Nic, memory: &str) -> Vec<String> {
    let Nic { socket, mac, mtu, .. } = nic;
    // Counted one by one, two to a pair.
    let rings = 2 * nic.queues.0;
    vec![
        "--memory".to_owned(),
        format!("size={memory},shared=on"),
        "--net".to_owned(),
        // `client`: it connects to us.
        format!(
            "vhost_user=true,socket={socket},vhost_mode=client,num_queues={rings},queue_size=256,mac={mac},mtu={mtu}"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use lichen_api::VmAttachment;

    use super::super::example;
    use super::*;
    use crate::args::Queues;

    #[test]
    fn memory_is_shared_and_the_socket_is_connected_to() {
        assert_eq!(
            arguments(&example(VmAttachment::VhostUser), "1G"),
            [
                "--memory",
                "size=1G,shared=on",
                "--net",
                "vhost_user=true,socket=/run/db.sock,vhost_mode=client,num_queues=2,queue_size=256,\
                 mac=02:4c:0a:58:00:02,mtu=1500",
            ]
        );
        let nic = Nic { queues: Queues(4), ..example(VmAttachment::VhostUser) };
        assert!(arguments(&nic, "1G")[3].contains(",num_queues=8,"));
    }
}
