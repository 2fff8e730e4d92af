//! The admin API and the metrics page, on a listener of their own.

use std::net::TcpListener as StdListener;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use kvroute_decision_log::Receipt;
use kvroute_policy::PolicyConfig;
use serde::{Deserialize, Serialize};

use crate::config::{GatewayConfig, InstanceConfig, InvalidConfig};
use crate::fleet::{ChangeError, Fleet, InstanceStatus};

const OPENAPI: &str = include_str!("openapi.json");

/// Serves until it is dropped.
pub(crate) async fn serve(listener: StdListener, fleet: Arc<Fleet>) {
    let served = async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, routes(fleet)).await
    };
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin API is lost");
    }
}

fn routes(fleet: Arc<Fleet>) -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/config", get(config))
        .route("/instances", get(instances).post(add_instance))
        .route("/instances/{name}", axum::routing::delete(remove_instance))
        .route("/instances/{name}/draining", put(set_draining))
        .route("/policy", get(policy).put(set_policy))
        .route("/receipts", get(receipts))
        .with_state(fleet)
}

async fn metrics(State(fleet): State<Arc<Fleet>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], fleet.write_metrics()).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn config(State(fleet): State<Arc<Fleet>>) -> Json<GatewayConfig> {
    Json(GatewayConfig::clone(&fleet.config()))
}

async fn instances(State(fleet): State<Arc<Fleet>>) -> Json<Vec<InstanceStatus>> {
    Json(fleet.status())
}

async fn add_instance(
    State(fleet): State<Arc<Fleet>>,
    Json(instance): Json<InstanceConfig>,
) -> Result<StatusCode, ChangeError> {
    fleet.add(instance)?;
    Ok(StatusCode::CREATED)
}

async fn remove_instance(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ChangeError> {
    fleet.remove(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_draining(
    State(fleet): State<Arc<Fleet>>,
    Path(name): Path<String>,
    Json(is_draining): Json<bool>,
) -> Result<StatusCode, ChangeError> {
    fleet.set_draining(&name, is_draining)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn policy(State(fleet): State<Arc<Fleet>>) -> Json<PolicyConfig> {
    Json(fleet.config().policy)
}

async fn set_policy(
    State(fleet): State<Arc<Fleet>>,
    Json(policy): Json<PolicyConfig>,
) -> Result<StatusCode, ChangeError> {
    fleet.set_policy(policy)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiptsQuery {
    #[serde(default = "ReceiptsQuery::all")]
    count: usize,
}

impl ReceiptsQuery {
    const fn all() -> usize {
        usize::MAX
    }
}

async fn receipts(
    State(fleet): State<Arc<Fleet>>,
    Query(ReceiptsQuery { count }): Query<ReceiptsQuery>,
) -> Json<Vec<Receipt>> {
    Json(fleet.receipts(count))
}

impl IntoResponse for ChangeError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Problem {
            error: String,
        }
        let status = match self {
            Self::UnknownInstance { .. } => StatusCode::NOT_FOUND,
            Self::Invalid(InvalidConfig::DuplicateInstance { .. }) => StatusCode::CONFLICT,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        let causes = std::iter::successors(Some(&self as &dyn std::error::Error), |e| e.source());
        let causes: Vec<String> = causes.map(ToString::to_string).collect();
        (status, Json(Problem { error: causes.join(": ") })).into_response()
    }
}
