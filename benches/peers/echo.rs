//! The ceiling: a gRPC server that answers with what it was sent.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};

use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::Result;
use crate::target::{KeyValue, Txn};

pub async fn serve(address: &str) -> Result<()> {
    Ok(Server::builder().tcp_nodelay(true).add_service(Echo).serve(address.parse()?).await?)
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl<M: Send + 'static> UnaryService<M> for Echo {
    type Response = M;
    type Future = Ready<std::result::Result<Response<M>, Status>>;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            Ok(if request.uri().path().ends_with("/Many") {
                tonic::server::Grpc::new(ProstCodec::<Txn, Txn>::default()).unary(Echo, request).await
            } else {
                let codec = ProstCodec::<KeyValue, KeyValue>::default();
                tonic::server::Grpc::new(codec).unary(Echo, request).await
            })
        })
    }
}
