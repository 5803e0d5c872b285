//! Noticing that a client is gone.

use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::sleep;

/// How soon a client that has said its last is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Ends when the other side is gone in both directions: the kernel says
/// EPOLLHUP. A client that has said its last and waits for its answer only
/// makes end of file.
pub(super) async fn hung_up(stream: &UnixStream) {
    // Ready for "priority" data, which Unix sockets have none of, is a socket
    // whose other side has said its last, and not one that can be read.
    if stream.ready(Interest::PRIORITY).await.is_err() {
        return;
    }
    while let Ok(ready) = stream.ready(Interest::WRITABLE).await
        && !ready.is_write_closed()
    {
        // A socket that can be written is ready all the time.
        sleep(LOOK_AGAIN).await;
    }
}
