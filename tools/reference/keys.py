"""What each key of weighbridge.yaml is for, where it is no knob with words of its own.

A test compares this with what the reader asks for: a key without words fails, and so do words without a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.knobs import bytes_text

REPLICA = "models.MODEL.replicas[]"
PLACE = "routes.ROUTE.places[]"

#: The sections of the page in its order, each with a sentence.
SECTIONS: Mapping[str, str] = {
    "": "Everything at the left edge of the file.",
    "models.MODEL": "A model by the name that clients ask for.",
    REPLICA: "One replica. Exactly one of `url`, `process`, `engine` and `ray` says what it is.",
    "models.MODEL.discover[]": "Where replicas are found, beside those that are named: one of `dns` and `kubernetes`.",
    f"{REPLICA}.abilities": "What a replica is stated to have or to lack; what is left out is learned. In a "
    "place of a route it may be a list instead: nothing else is asked of it.",
    f"{REPLICA}.capacity": "What is known of a replica beforehand; what is left out is learned from its reports.",
    f"{REPLICA}.capacity.step_cost": "How long an iteration takes, as `weighbridge calibrate --json` prints it.",
    f"{REPLICA}.price": "What its tokens cost.",
    f"{REPLICA}.limits": "What may be sent to this replica, such as the limits of an account.",
    f"{REPLICA}.options": "Options of `weighbridge serve` for a replica that is started here (`process`, "
    "`engine`, `ray`). A list of words, as on a command line, is read too.",
    f"{REPLICA}.scaling": "When a `ray` replica gets more actors, and when fewer.",
    "on_demand": "Models whose replicas are all a `process` are loaded when somebody asks for them "
    "([several models on one box](../guide/several.md)). `on_demand: {}` is enough.",
    "timeouts": "How long is waited for a replica. A replica's own `timeouts` win; a place of a route with a "
    "replica of its own has `connect: 5`, `first_byte: 60` and `idle: 30` unless it says otherwise.",
    "hedge": "A second copy of a request that is slow to begin. A model's own `hedge` wins.",
    "tenants.TENANT": "A tenant by its name.",
    "tenants.TENANT.keys[]": "One of its keys; several may be good at once.",
    "limits": "Limits of each tenant: under `limits` for those that have none of their own, under "
    "`tenants.TENANT.limits` for one.",
    "shared": "What several gateways share, in place of `shared_limits`; it is sealed with the `admin_key`.",
    "shared_limits": "Several gateways hold to limits together (extra `redis`).",
    "queue": "Requests that wait because no replica has room.",
    "health": "Probes of replicas.",
    "retry": "What is tried again at another replica, before a first byte has come.",
    "breaker": "When a replica that fails gets nothing for a while.",
    "routes.ROUTE": "A route by the name that clients ask for. It has `edge` and `cloud`, or `places`.",
    PLACE: "A place of a route; `edge` and `cloud` are two such entries without `name` and `level`. One "
    "that has a `url`, `process`, `engine` or `ray` is a replica of its own, with all "
    "[settings of one](#modelsmodelreplicas).",
    "routes.ROUTE.rules[]": "The strictest rule that matches wins. What a rule leaves out matches everything.",
    "routes.ROUTE.cascade": "Judging the local answer, and asking the cloud where it is weak.",
    "routes.ROUTE.privacy": "What is looked for before a prompt may leave.",
    "routes.ROUTE.caps": "Bounds for the cloud, per tenant, whatever a score says.",
    "routes.ROUTE.shadow": "A share of the requests that both sides answer, so that it is known how good "
    "the local ones are.",
    "routes.ROUTE.bandit": "Thresholds that are tried out by themselves.",
    "budgets": 'Money for the cloud: for all together, and for one of `tenants` or `routes` (`"*"`: each not named). '
    "There a number is US dollars a day.",
}

#: Sections that are read in several places, under the path on the page.
SAME: tuple[tuple[str, str], ...] = (
    (r"^routes\.SHORT", "routes.ROUTE"),
    (r"^routes\.ROUTE\.(edge|cloud)\b", PLACE),
    (r"^routes\.ROUTE\.places\[\]\.", f"{REPLICA}."),
    (r"^models\.MODEL\.hedge$", "hedge"),
    (r"^models\.MODEL\.discover\[\]\.replica\b", REPLICA),
    (r"^models\.MODEL\.replicas\[\]\.timeouts$", "timeouts"),
    (r"^tenants\.TENANT\.limits$", "limits"),
    (r"^budgets\.(tenants|routes)\.NAME$", "budgets"),
)
#: Sections whose keys are names that an operator gives.
NAMES = frozenset(
    {
        "models",
        "tenants",
        "routes",
        "budgets.tenants",
        "budgets.routes",
        f"{REPLICA}.headers",
        f"{REPLICA}.resources",
    }
)
#: Keys of a place that a replica has too, and that mean something else there.
PLACES_OWN = frozenset({"name", "model", "abilities"})

#: Values that are read as they come and judged afterwards.
KINDS: Mapping[str, str] = {
    "max_body": "size, such as 8MiB",
    "shared.streams": "size, such as 64MiB",
    "models.MODEL.discover[].port": "text or number",
    "models.MODEL.memory": "size, such as 2GiB",
    f"{REPLICA}.abilities": "section",
    f"{REPLICA}.options": "section",
    f"{REPLICA}.api_version": "text",
    f"{REPLICA}.prefix": "text",
    f"{REPLICA}.command": "list of words, or a line",
    f"{REPLICA}.bundles": "list of numbers by name",
    f"{REPLICA}.runtime_env": "mapping",
    "tenants.TENANT.keys[].expires": "day or moment",
    "routes.ROUTE.bandit.arms": "list of numbers",
    "budgets.tenants": "sections by name",
    "budgets.routes": "sections by name",
}
DEFAULTS: Mapping[str, str] = {
    "max_body": bytes_text(next(one.default for one in fields(FleetSpec) if one.name == "max_body")),
}

#: Unit and meaning of each key.
WORDS: Mapping[str, tuple[str, str]] = {
    "listen": ("", "Address and port to listen on."),
    "timeouts": ("", "How long is waited for replicas."),
    "hedge": ("", "A second copy of slow requests."),
    "policy": (
        "",
        "Which replica gets a request, in models that do not say "
        "([policies](../guide/gateway.md#which-replica-gets-a-request)).",
    ),
    "resume": ("", "Streams whose replica dies go on at another one, in models that do not say."),
    "models": ("", "The models and their replicas. A file with routes may have none."),
    "tenants": ("", "Who may call, with keys and limits. With none, everybody may."),
    "admin_key": (
        "",
        "The operator's key, or its hash: for `/admin/replicas`. Without one the fleet cannot be "
        "changed at run time.",
    ),
    "admin_key_env": ("", "The same from a variable, which keeps it out of the file."),
    "limits": ("", "Limits of tenants that have none of their own."),
    "handover": (
        "",
        "Socket over which a new process takes the listening socket from this one (`serve --takeover`).",
    ),
    "shared": ("", "What gateways share: limits, members, tenants, what they have learned, streams."),
    "shared.redis": ("", "The Redis, by its URL."),
    "shared.redis_env": ("", "The same from a variable."),
    "shared.prefix": ("", "What names in it begin with."),
    "shared.timeout": ("s", "After this a gateway goes on by itself."),
    "shared.limits": ("", "Limits hold over all gateways."),
    "shared.name": ("", "This gateway's name among them."),
    "shared.members": ("", "Members of the fleet are shared."),
    "shared.tenants": ("", "Keys and limits that operators change at run time are shared."),
    "shared.learned": ("", "What was learned of replicas and lengths is shared."),
    "shared.streams": ("bytes", "Room for streams that survive their gateway; 0: none."),
    "models.MODEL.discover": ("", "Where further replicas are found."),
    "models.MODEL.discover[].dns": (
        "",
        "`HOST:PORT`, each address of which is a replica, or SRV records (`_SERVICE._tcp.NAME`).",
    ),
    "models.MODEL.discover[].kubernetes": ("", "`NAMESPACE/SERVICE`, each endpoint of which is a replica."),
    "models.MODEL.discover[].port": ("", "`kubernetes`: name or number of the service's port."),
    "models.MODEL.discover[].name": ("", "What the names of its replicas begin with."),
    "models.MODEL.discover[].replica": ("", "The entry of each, without its URL."),
    "models.MODEL.discover[].scheme": ("", "How each is asked."),
    "models.MODEL.discover[].interval": ("s", "Names are asked for again at least so often."),
    "models.MODEL.discover[].server": ("", "`dns`: the name server, in place of this machine's."),
    "models.MODEL.discover[].api": ("", "`kubernetes`: the URL of its API, where this is no pod."),
    "models.MODEL.discover[].account": ("", "`kubernetes`: the folder of the service account."),
    "shared_limits": ("", "The Redis in which several gateways keep limits together."),
    "on_demand": ("", "Models are loaded when somebody asks for them."),
    "queue": ("", "Bounds of the queue."),
    "health": ("", "Probes of replicas."),
    "retry": ("", "What is tried again."),
    "breaker": ("", "When a replica that fails is left alone."),
    "tickets": ("", "JSONL file to which every ticket is appended."),
    "changes_file": (
        "",
        "JSONL file of what operators change at run time, with who and when; without it changes "
        "last until the gateway ends.",
    ),
    "max_body": ("bytes", "Largest request body."),
    "drain_timeout": ("s", "Time to finish accepted requests on SIGTERM."),
    "routes": ("", "Names that stand for places at the edge and in the cloud."),
    "budgets": ("", "Money for the cloud."),
    "ledger": ("", "SQLite file of what was spent and used; without it that is forgotten at a restart."),
    "shadow_file": ("", "JSONL file of what both sides of shadowed requests answered, judged."),
    # -- models
    "models.MODEL.replicas": ("", "Where it runs."),
    "models.MODEL.aliases": ("", "Further names that lead here."),
    "models.MODEL.tokenizer": (
        "",
        "Directory or GGUF with its tokenizer: prompts are counted exactly. Not needed with a "
        "`process` or `engine`.",
    ),
    "models.MODEL.policy": ("", "Which replica gets a request."),
    "models.MODEL.resume": (
        "",
        "A stream whose replica dies goes on at another one, where what has come is computed again.",
    ),
    "models.MODEL.keep_streams": (
        "",
        "Streams survive their client for a minute, also where it does not ask for that.",
    ),
    "models.MODEL.keep": ("", "`on_demand`: loaded at start, and never displaced."),
    "models.MODEL.keep_alive": (
        "s",
        "`on_demand`: without a request for so long it is unloaded; as all are where it is not said.",
    ),
    "models.MODEL.memory": ("bytes", "`on_demand`: what it takes, where the planner cannot work it out."),
    "models.MODEL.hedge": ("", "A second copy of slow requests."),
    "models.MODEL.default_max_tokens": ("tokens", "Longest answer where a client does not say."),
    "models.MODEL.thinking_tokens": (
        "tokens",
        "What a choice may count beyond `max_tokens` without showing it. Unless said 32768 where there "
        "is a price, and else nothing is assumed.",
    ),
    "models.MODEL.only_routes": ("", "Clients reach it through routes only."),
    # -- replicas
    f"{REPLICA}.url": ("", "A server that runs already."),
    f"{REPLICA}.process": (
        "",
        "A model that `weighbridge serve` runs in a process of its own, watched and started again.",
    ),
    f"{REPLICA}.engine": ("", "A model that runs in the gateway's own process."),
    f"{REPLICA}.ray": ("", "A model that runs in a Ray actor (extra `ray`)."),
    f"{REPLICA}.dialect": ("", "What kind of server it is; `weighbridge` where it is started here."),
    f"{REPLICA}.name": (
        "",
        "Its name in figures and tickets; the model's with a number where none is given.",
    ),
    f"{REPLICA}.model": (
        "",
        "What this server calls the model; what its `/v1/models` lists where it is not said.",
    ),
    f"{REPLICA}.key": ("", "The key that is sent to it."),
    f"{REPLICA}.key_env": ("", "The same from a variable."),
    f"{REPLICA}.headers": ("", "Headers that are sent with each request."),
    f"{REPLICA}.price": ("", "What its tokens cost."),
    f"{REPLICA}.capacity": ("", "What is known of it beforehand."),
    f"{REPLICA}.limits": ("", "What may be sent there."),
    f"{REPLICA}.timeouts": ("", "How long is waited for it."),
    f"{REPLICA}.tls_ca": (
        "",
        "Authorities (PEM) that its https URL is believed by, instead of this machine's.",
    ),
    f"{REPLICA}.tls_cert": ("", "The certificate (PEM) that the gateway shows it."),
    f"{REPLICA}.tls_key": ("", "The key of that certificate, where it is in a file of its own."),
    f"{REPLICA}.probe": ("", "Ask for its health; off for what must be called for work only."),
    f"{REPLICA}.probe_path": ("", "What to ask for its health, instead of what its dialect has."),
    f"{REPLICA}.prefix": ("", "What its paths begin with instead of `/v1`; may be empty (`''`)."),
    f"{REPLICA}.api_version": ("", "Azure's version of the API; paths then name the deployment."),
    f"{REPLICA}.abilities": ("", "What it has and lacks."),
    f"{REPLICA}.kv_events": (
        "",
        "Where it publishes what its prefix cache holds (`tcp://` or `ipc://`, extra `kv-events`).",
    ),
    f"{REPLICA}.kv_replay": ("", "Where it sends missed events again."),
    f"{REPLICA}.stream_usage": ("", "It understands `stream_options.include_usage`."),
    f"{REPLICA}.traces": (
        "",
        "It is told of distributed traces ([traces](../guide/traces.md)); an engine of ours is anyway.",
    ),
    f"{REPLICA}.command": (
        "",
        "Starts another engine than ours, with places such as `{port}` (`process`, `ray`).",
    ),
    f"{REPLICA}.env": ("", "Variables of that command."),
    f"{REPLICA}.bundles": ("", "`ray`: resources that are reserved together, such as `[{GPU: 4, CPU: 8}]`."),
    f"{REPLICA}.strategy": ("", "`ray`: how bundles are placed."),
    f"{REPLICA}.runtime_env": ("", "`ray`: Ray's own `runtime_env`."),
    f"{REPLICA}.namespace": ("", "`ray`: the namespace in which actors are found again."),
    f"{REPLICA}.keep": ("", "`ray`: actors outlive the gateway."),
    f"{REPLICA}.waits_for_nodes": ("", "`ray`: the cluster brings nodes as they are asked for."),
    f"{REPLICA}.count": ("", "So many replicas alike (`process`, `ray`)."),
    f"{REPLICA}.threads": ("", "Compute threads of each; the cores are shared out where it is not said."),
    f"{REPLICA}.options": ("", "Options of its `weighbridge serve`."),
    f"{REPLICA}.min": ("", "`ray`: fewest actors."),
    f"{REPLICA}.max": ("", "`ray`: most actors; `min` where it is not said."),
    f"{REPLICA}.scaling": ("", "`ray`: when there should be more or fewer."),
    f"{REPLICA}.cpus": ("", "`ray`: processors of each actor."),
    f"{REPLICA}.gpus": ("", "`ray`: GPUs of each actor."),
    f"{REPLICA}.resources": ("", "`ray`: other resources of each actor."),
    f"{REPLICA}.address": ("", "`ray`: the cluster; one on this machine is started where none is named."),
    f"{REPLICA}.abilities.chat": ("", "`/v1/chat/completions`."),
    f"{REPLICA}.abilities.completions": ("", "`/v1/completions`."),
    f"{REPLICA}.abilities.embeddings": ("", "`/v1/embeddings`."),
    f"{REPLICA}.abilities.scores": ("", "`/v1/score` and `/v1/rerank`."),
    f"{REPLICA}.abilities.labels": ("", "`/v1/classify`."),
    f"{REPLICA}.abilities.decisions": ("", "`/v1/decisions`."),
    f"{REPLICA}.abilities.tools": ("", "Calls of tools."),
    f"{REPLICA}.abilities.forced_tools": ("", "Calls that must be made (`tool_choice: required`)."),
    f"{REPLICA}.abilities.schema": ("", "Answers that are held to a schema."),
    f"{REPLICA}.abilities.logprobs": ("", "Log-probabilities."),
    f"{REPLICA}.abilities.vision": ("", "Pictures."),
    f"{REPLICA}.abilities.audio": ("", "Sound."),
    f"{REPLICA}.capacity.step_cost": ("", "How long an iteration takes."),
    f"{REPLICA}.capacity.kv_tokens": ("tokens", "What its KV cache holds."),
    f"{REPLICA}.capacity.max_sequences": ("requests", "How many run at once."),
    f"{REPLICA}.capacity.max_batch_tokens": ("tokens", "What an iteration computes at most."),
    f"{REPLICA}.capacity.max_model_len": ("tokens", "Longest prompt and answer together."),
    f"{REPLICA}.capacity.step_cost.overhead": ("s", "What each iteration takes beside its tokens."),
    f"{REPLICA}.capacity.step_cost.memory": (
        "s",
        "Reading the weights: an iteration takes at least this beside its overhead.",
    ),
    f"{REPLICA}.capacity.step_cost.per_token": ("s", "For each token that is computed."),
    f"{REPLICA}.capacity.step_cost.per_context_token": (
        "s",
        "For each token of context that a decode reads.",
    ),
    f"{REPLICA}.capacity.step_cost.per_sequence": ("s", "For each sequence of the iteration."),
    f"{REPLICA}.capacity.step_cost.per_prompt_pair": (
        "s",
        "For each pair of prompt tokens; as a token of context where it is not said.",
    ),
    f"{REPLICA}.price.input_usd_per_million": ("US dollars", "A million prompt tokens."),
    f"{REPLICA}.price.output_usd_per_million": ("US dollars", "A million output tokens."),
    f"{REPLICA}.price.cached_usd_per_million": (
        "US dollars",
        "A million prompt tokens that come from its cache; as others where it is not said.",
    ),
    f"{REPLICA}.price.cache_write_usd_per_million": (
        "US dollars",
        "A million prompt tokens that are written to its cache; as others where it is not said.",
    ),
    f"{REPLICA}.price.usd_per_hour": ("US dollars", "The machine, by the hour."),
    f"{REPLICA}.limits.requests_per_minute": ("requests", "In the last minute."),
    f"{REPLICA}.limits.tokens_per_minute": ("tokens", "In the last minute."),
    f"{REPLICA}.limits.concurrent_requests": ("requests", "At one time."),
    f"{REPLICA}.limits.usd_per_day": ("US dollars", "In the last 24 hours."),
    f"{REPLICA}.scaling.ttft": ("s", "One more actor when nine of ten first tokens take longer."),
    f"{REPLICA}.scaling.itl": ("s", "One more actor when the mean gap between tokens is longer."),
    f"{REPLICA}.scaling.high": ("s", "One more actor when what waits would take longer to work off."),
    f"{REPLICA}.scaling.low": (
        "s",
        "One fewer when the others would still be done with everything in this time.",
    ),
    f"{REPLICA}.scaling.up_after": ("s", "How long the first must hold."),
    f"{REPLICA}.scaling.down_after": ("s", "How long the second must hold."),
    f"{REPLICA}.scaling.settle": ("s", "How long nothing changes after a step."),
    "timeouts.connect": ("s", "To open a connection."),
    "timeouts.first_byte": ("s", "To the first byte of a stream."),
    "timeouts.answer": ("s", "For a whole answer that is not streamed."),
    "timeouts.idle": ("s", "Between two pieces of a stream."),
    "timeouts.probe": ("s", "For a probe."),
    "hedge.enabled": ("", "Send second copies."),
    "hedge.quantile": (
        "share",
        "A copy is sent once a request takes longer to begin than this share of requests.",
    ),
    "hedge.extra_work": ("share", "Tokens that copies may add to those of all requests."),
    "hedge.minimum_delay": ("s", "No copy sooner."),
    "hedge.minimum_samples": ("requests", "No copy before so many were measured."),
    # -- tenants
    "tenants.TENANT.keys": ("", "Its keys."),
    "tenants.TENANT.key": ("", "One key, or its hash."),
    "tenants.TENANT.key_env": ("", "The same from a variable."),
    "tenants.TENANT.limits": ("", "Its limits."),
    "tenants.TENANT.priority": (
        "",
        "The best class that its requests may ask for, from -1000; lower runs first. 0 where it is not said.",
    ),
    "tenants.TENANT.keys[].key": ("", "The key, or its hash (`weighbridge keys new`)."),
    "tenants.TENANT.keys[].key_env": ("", "The same from a variable."),
    "tenants.TENANT.keys[].expires": ("", "A day, to whose end (UTC) the key is good, or a moment."),
    "limits.requests_per_minute": ("requests", "In the last minute."),
    "limits.tokens_per_minute": ("tokens", "In the last minute, prompts and answers."),
    "limits.concurrent_tokens": ("tokens", "In flight at one time."),
    "limits.usd_per_day": ("US dollars", "What its requests may cost."),
    "limits.window": (
        "",
        "Whether a day is the last 24 hours, or one of the calendar; `day` where a `zone` is given.",
    ),
    "limits.zone": ("", "The time zone of the calendar, such as `Europe/Berlin`."),
    "shared_limits.redis": ("", "Its URL."),
    "shared_limits.redis_env": ("", "The same from a variable."),
    "shared_limits.prefix": ("", "What names in it begin with; sets fleets in one Redis apart."),
    "shared_limits.timeout": ("s", "After this a request goes on with the limits of its own gateway."),
    # -- the fleet
    "queue.max_requests": ("requests", "How many may wait."),
    "queue.max_tokens": ("tokens", "How much work may wait."),
    "queue.max_wait": ("s", "How long one may wait."),
    "queue.tenant_patience": ("s", "After this a tenant without a place is sent on where seats are shared."),
    "health.interval": ("s", "Between two probes."),
    "health.failures": ("probes", "So many in a row, and a replica is down."),
    "health.slow_start": ("s", "How long until a replica that came back has its full share."),
    "retry.attempts": ("", "How often a request is sent at most."),
    "retry.budget": ("share", "Of the requests, how many may be tried again."),
    "retry.burst": ("requests", "How many may be tried again at once, before the budget counts."),
    "retry.longest_wait": ("s", "The longest `Retry-After` that is waited for."),
    "breaker.failures": ("requests", "So many failures in a row open it."),
    "breaker.failure_rate": ("share", "So does this share of failures within `window`."),
    "breaker.minimum": ("requests", "That share counts from so many requests on."),
    "breaker.window": ("s", "The time in which they are counted."),
    "breaker.cool_off": ("s", "How long a replica then gets nothing, the first time."),
    "breaker.longest_cool_off": ("s", "The longest such time; it doubles while the replica fails."),
    # -- routes
    "routes.ROUTE.residency": ("", "What may leave where no rule says otherwise."),
    "routes.ROUTE.rules": ("", "Stricter rules for some requests."),
    "routes.ROUTE.places": ("", "The places in the order of trust, instead of `edge` and `cloud`."),
    "routes.ROUTE.edge": ("", "The place within the boundary."),
    "routes.ROUTE.cloud": ("", "The place beyond it."),
    "routes.ROUTE.threshold": (
        "",
        "The pre-router's score from which the cloud answers, from 0 to 1; that of the router's "
        "file where it is not said.",
    ),
    "routes.ROUTE.router": ("", "What `weighbridge route train` wrote."),
    "routes.ROUTE.score_wait_ms": (
        "ms",
        "How long a prompt waits for the vectors that the router was trained with.",
    ),
    "routes.ROUTE.cascade": ("", "Judging the local answer."),
    "routes.ROUTE.privacy": ("", "What detectors look for."),
    "routes.ROUTE.caps": ("", "Bounds for the cloud."),
    "routes.ROUTE.shadow": ("", "A share that both sides answer."),
    "routes.ROUTE.bandit": ("", "Thresholds that are tried out."),
    "routes.ROUTE.cloud_attempts": ("", "How often the cloud is asked for one request."),
    "routes.ROUTE.timeout": ("s", "For a whole answer."),
    "routes.ROUTE.may_store": (
        "",
        "What stays local or is redacted may be written down where its client wants that.",
    ),
    f"{PLACE}.name": ("", "Its name in tickets."),
    f"{PLACE}.level": ("", "Within the boundary, or beyond it; it must be said."),
    f"{PLACE}.abilities": ("", "All that is asked of it; everything where it is not said."),
    f"{PLACE}.model": ("", "A model of this file; beside a `url`, what that server calls its model."),
    f"{PLACE}.context": (
        "tokens",
        "The longest prompt and answer that the route sends there, where that is less than its "
        "replicas take.",
    ),
    f"{PLACE}.max_tokens": ("tokens", "Longest answer where a client does not say."),
    f"{PLACE}.thinking_tokens": ("tokens", "As of a model, for a replica of its own."),
    "routes.ROUTE.rules[].name": ("", "Its name in tickets; `rule 1` and so on where it has none."),
    "routes.ROUTE.rules[].residency": ("", "What may leave of a request that it matches."),
    "routes.ROUTE.rules[].tenants": ("", "Tenants that it is for."),
    "routes.ROUTE.rules[].routes": ("", "Routes that it is for."),
    "routes.ROUTE.rules[].labels": ("", "Labels that it is for, of which a request must have one."),
    "routes.ROUTE.rules[].types": (
        "",
        'What detectors must find, of which one is enough; `"*"` is anything.',
    ),
    "routes.ROUTE.cascade.enabled": ("", "Judge local answers."),
    "routes.ROUTE.cascade.threshold": ("", "Confidence below which the cloud answers instead, from 0 to 1."),
    "routes.ROUTE.cascade.window_tokens": (
        "tokens",
        "How much of a stream is held back and judged; 24 where neither is said.",
    ),
    "routes.ROUTE.cascade.window_ms": (
        "ms",
        "The longest that it is held back after its first token; 1500 where neither is said.",
    ),
    "routes.ROUTE.cascade.race": ("", "Both sides start at once, and the loser is cancelled."),
    "routes.ROUTE.cascade.top_logprobs": ("", "Alternatives of each token that the judge sees."),
    "routes.ROUTE.cascade.samples": (
        "answers",
        "Local answers that are compared, the first included; 16 at most.",
    ),
    "routes.ROUTE.cascade.sample_temperature": ("", "The temperature of the further ones."),
    "routes.ROUTE.privacy.ner": ("", "Names of persons and places too, with a model (extra `privacy`)."),
    "routes.ROUTE.privacy.deny": ("", "Phrases that are taken out as well."),
    "routes.ROUTE.privacy.types": ("", "The types that are looked for; all where it is not said."),
    "routes.ROUTE.privacy.timeout": ("s", "What takes longer stays local."),
    "routes.ROUTE.caps.cloud_per_minute": ("requests", "Of a tenant to the cloud, in a minute."),
    "routes.ROUTE.caps.cloud_share": ("share", "Of a tenant's requests that may go to the cloud."),
    "routes.ROUTE.caps.window": ("s", "The time in which that share is counted."),
    "routes.ROUTE.caps.share_after": ("requests", "That share counts from so many requests on."),
    "routes.ROUTE.shadow.share": ("share", "Of the requests that both sides answer."),
    "routes.ROUTE.shadow.judge": ("", "Whether answers are compared by agreement, or by the cloud's model."),
    "routes.ROUTE.shadow.max_concurrent": ("requests", "How many at one time."),
    "routes.ROUTE.shadow.keep_texts": (
        "",
        "Keep prompts and answers for `route train`; else features and verdicts only.",
    ),
    "routes.ROUTE.bandit.enabled": ("", "Try them out."),
    "routes.ROUTE.bandit.arms": ("", "The thresholds."),
    "routes.ROUTE.bandit.usd_per_quality": ("US dollars", "What a right answer is worth."),
    "budgets.usd_per_day": ("US dollars", "From midnight to midnight in `zone`."),
    "budgets.usd_per_month": ("US dollars", "In a month of the calendar."),
    "budgets.usd_per_window": ("US dollars", "In the last `window_hours`."),
    "budgets.window_hours": ("hours", "1 to 744."),
    "budgets.tenants": ("", "Budgets of tenants."),
    "budgets.routes": ("", "Budgets of routes."),
    "budgets.zone": ("", "The time zone of days and months, such as `Europe/Berlin`."),
}
