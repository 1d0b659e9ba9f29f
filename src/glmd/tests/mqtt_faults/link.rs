//! The network between glmd and the broker, which can be cut.

use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay that can be switched off.
pub struct Cut {
    port: u16,
    on: watch::Sender<bool>,
}

impl Cut {
    /// Relays to `broker` on this machine.
    pub async fn start(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (on, is_on) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !*is_on.borrow() {
                    continue;
                }
                let mut is_on = is_on.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", broker)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_on.wait_for(|on| !on) => {}
                    }
                });
            }
        });
        Self { port, on }
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the link for a while.
    pub async fn off_for(&self, time: Duration) {
        self.on.send_replace(false);
        tokio::time::sleep(time).await;
        self.on.send_replace(true);
    }
}
