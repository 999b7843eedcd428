//! A client that speaks HTTP/2 with prior knowledge, gives out its windows by hand and resets its streams when
//! a test says so.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::until::within;

/// One connection; it is closed when this and its streams are dropped.
pub(crate) struct Http2 {
    requests: SendRequest<Bytes>,
    addr: SocketAddr,
    _connection: JoinSet<()>,
}

/// An answer on its way.
pub(crate) struct Stream {
    body: RecvStream,
    request: SendStream<Bytes>,
}

impl Http2 {
    /// Connects; each stream takes so many bytes before it is given more.
    pub(crate) async fn connect(addr: SocketAddr, window_bytes: u32) -> Self {
        let socket = TcpStream::connect(addr).await.expect("the broker accepts a connection");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window_bytes);
        let (requests, connection) =
            within("an HTTP/2 handshake", builder.handshake(socket)).await.expect("the broker speaks HTTP/2");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // That it ends with an error is what some tests are about; their streams tell.
            let _ = connection.await;
        });
        Self { requests, addr, _connection: tasks }
    }

    /// `GET` of a path; the answer must be 200.
    pub(crate) async fn get(&mut self, path: &str) -> Stream {
        within("an answer over HTTP/2", self.try_get(path))
            .await
            .unwrap_or_else(|why| panic!("{path}: {why}"))
    }

    async fn try_get(&mut self, path: &str) -> Result<Stream, h2::Error> {
        let request = Request::get(format!("http://{}{path}", self.addr)).body(()).expect("a request");
        let (answer, request) = self.send(request).await?;
        let answer = answer.await?;
        assert_eq!(answer.status(), 200, "{path}");
        Ok(Stream { body: answer.into_body(), request })
    }

    /// Begins a `POST` of a JSON body that does not end. The bytes go out as the broker opens its window.
    pub(crate) async fn begin_post(&mut self, path: &str, body: Bytes) -> SendStream<Bytes> {
        let request =
            Request::post(format!("http://{}{path}", self.addr)).header("content-type", "application/json");
        let requests = self.requests.clone();
        let mut requests =
            within("room for a stream", requests.ready()).await.expect("the connection is open");
        let (_, mut upload) =
            requests.send_request(request.body(()).expect("a request"), false).expect("the request is sent");
        upload.send_data(body, false).expect("the stream is open");
        upload
    }

    /// `GET` of a path that is taken back before it is answered; false when the connection has ended.
    pub(crate) async fn get_and_reset(&mut self, path: &str) -> bool {
        let request = Request::get(format!("http://{}{path}", self.addr)).body(()).expect("a request");
        match within("room for a stream", self.send(request)).await {
            Ok((_, mut request)) => {
                request.send_reset(Reason::CANCEL);
                true
            }
            Err(_) => false,
        }
    }

    async fn send(
        &mut self,
        request: Request<()>,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        requests.send_request(request, true)
    }
}

impl Stream {
    /// The next bytes, which take of the window until they are given back; `None` when the stream has ended,
    /// in good order or not.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        within("bytes of an HTTP/2 stream", self.body.data()).await.and_then(Result::ok)
    }

    /// Lets the broker send so many bytes more.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.body.flow_control().release_capacity(bytes).expect("no more than was taken");
    }

    /// Reads on until `text` has come; answers all that was read.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&seen);
            if so_far.contains(text) {
                return so_far.into_owned();
            }
            let bytes = self.next().await.unwrap_or_else(|| panic!("the stream ended before {text:?}"));
            self.give_back(bytes.len());
            seen.extend_from_slice(&bytes);
        }
    }

    /// Takes the request back.
    pub(crate) fn reset(mut self) {
        self.request.send_reset(Reason::CANCEL);
    }
}
