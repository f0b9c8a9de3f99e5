"""The options that a client sends beside its message: tools, instructions, a form of the response, limits.

Layer: agents.

Pure functions. Each API has names of its own for the same option. `options_in` reads them from the body of a request
under the names of `TurnRequest`, which are stored with the question; `docs/interop.md` has the table. Safe to change: a
new optional field. The stored names stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypedDict, get_args

import msgspec
from msgspec import Meta, Struct

from tenuto.core.errors import InvalidRequest, LocalError, shown
from tenuto.core.model import Json

Api = Literal["openai", "responses", "anthropic"]

# Fields of OpenAI's APIs, and settings of the AI SDK, that the view has under their own names in `extra`.
_EXTRA = (
    *("frequency_penalty", "presence_penalty", "frequencyPenalty", "presencePenalty", "top_k", "topK", "min_p"),
    *("logit_bias", "logprobs", "top_logprobs", "n", "modalities", "audio", "prediction", "functions", "image"),
    *("function_call", "service_tier", "store", "user", "safety_identifier", "prompt_cache_key", "prompt"),
    *("prompt_cache_retention", "include", "truncation", "max_tool_calls", "web_search_options", "moderation"),
    *("prompt_cache_options", "context_management", "access_programs", "background_options"),
)


class _Choice(TypedDict, total=False):
    """The checked fields of a `tool_choice`, and of the tools in it."""

    type: str
    tools: list[_Choice]


class TurnRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The options that a client sends beside its message. A field that it has not sent is `None`, or empty.

    The forms are those of OpenAI's Responses, whichever API the client uses. The handler decides which of the options
    it follows.
    """

    model: str | None = None
    instructions: str | None = None
    system: list[str] = []  # texts of the system messages in the last result of `turn.history`
    # `{"type": "function", "name", "description", "parameters", "strict"}`, or others
    tools: list[dict[str, Json]] = []
    tool_choice: str | dict[str, Json] | None = None  # auto, none, required, or `{"type": "function", "name"}`
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Json] | None = None  # `{"type": "json_schema", "name", "schema", "strict"}`, or others
    verbosity: str | None = None
    max_output_tokens: int | None = None
    reasoning: dict[str, Json] | None = None  # `{"effort", "summary"}`
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] = []
    metadata: dict[str, Json] = {}
    context: list[Json] = []  # of AG-UI: `{"description", "value"}`
    state: Json = None  # of AG-UI
    previous_response_id: str | None = None
    background: bool | None = None
    extra: dict[str, Json] = {}  # further known fields of the API, as they were sent

    def options(self, api: Api) -> dict[str, Any]:
        """Return the arguments for a call of the model, in the form of its API: all but `model`, and the messages.

        `openai` is for Chat Completions, `responses` for OpenAI's Responses, `anthropic` for Anthropic's Messages.
        What the API does not know is left out (`docs/agents.md`); so are instructions in Chat Completions, which takes
        them as a message. `anthropic` has the system messages of the conversation too, after `turn.history`.
        """
        if api not in get_args(Api):
            raise LocalError(f"api must be one of {', '.join(get_args(Api))}, got {shown(api)}")
        options = {"openai": _for_chat, "responses": _for_responses, "anthropic": _for_anthropic}[api](self)
        return {name: value for name, value in options.items() if value not in (None, [], {})}


def _for_chat(one: TurnRequest) -> dict[str, Json]:
    """Return the arguments for Chat Completions, with the tools of the types that it knows."""
    choice, form = one.tool_choice, one.response_format
    tools = [tool for tool in one.tools if tool.get("type") in ("function", "custom")]
    known = {_named(tool) for tool in tools}
    if isinstance(choice, dict) and choice.get("type") == _ALLOWED:
        allowed = [_nested(tool) for tool in _allowed(one) if _named(tool) in known]  # the others are not sent
        choice = _nested({**choice, "tools": allowed}) if allowed else "none"
    elif isinstance(choice, dict):
        choice = _nested({"type": "function", **choice}) if _named(choice) in known else None
    if form is not None and form.get("type") == "json_schema":
        form = _nested(form)
    return {
        "tools": [_nested(tool) for tool in tools],
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": one.parallel_tool_calls if tools else None,
        "response_format": form,
        "verbosity": one.verbosity,
        "max_completion_tokens": one.max_output_tokens,
        "reasoning_effort": (one.reasoning or {}).get("effort"),
        "temperature": one.temperature,
        "top_p": one.top_p,
        "seed": one.seed,
        "stop": one.stop,
    }


def _allowed(one: TurnRequest) -> list[dict[str, Json]]:
    """Return the tools to which `tool_choice` restricts the model; [] if it names none."""
    choice = one.tool_choice
    tools = choice.get("tools") if isinstance(choice, dict) and choice.get("type") == _ALLOWED else None
    return [tool for tool in tools if isinstance(tool, dict) and "type" in tool] if isinstance(tools, list) else []


def _named(tool: dict[str, Json]) -> tuple[str, str]:
    """Return the type and the name of a tool, or of a choice of one."""
    return str(tool.get("type", "function")), str(tool.get("name"))


def _nested(tool: dict[str, Json]) -> dict[str, Json]:
    """Return a tool, a choice or a form as Chat Completions nests it: its fields below the name of its type."""
    kind, fields = tool["type"], {name: value for name, value in tool.items() if name != "type"}
    if kind == "custom" and isinstance(form := fields.get("format"), dict) and form.get("type") == "grammar":
        fields["format"] = _nested(form)
    return {"type": kind, kind: fields}


def _for_responses(one: TurnRequest) -> dict[str, Json]:
    text = {"format": one.response_format, "verbosity": one.verbosity}
    return {
        "instructions": one.instructions,
        "tools": one.tools,
        "tool_choice": one.tool_choice,
        "parallel_tool_calls": one.parallel_tool_calls,
        "text": {name: value for name, value in text.items() if value is not None},
        "max_output_tokens": one.max_output_tokens,
        "reasoning": one.reasoning,
        "temperature": one.temperature,
        "top_p": one.top_p,
    }


def _for_anthropic(one: TurnRequest) -> dict[str, Json]:
    choice: dict[str, Json] | None = None
    allowed = {_named(tool) for tool in _allowed(one) or one.tools}  # all, unless the client restricts them
    functions = [tool for tool in one.tools if tool.get("type") == "function" and _named(tool) in allowed]
    mode = one.tool_choice.get("mode") if isinstance(one.tool_choice, dict) else one.tool_choice  # dict: of `_ALLOWED`
    if isinstance(mode, str):
        kinds = {"auto": "auto", "required": "any", "none": "none"}
        choice = {"type": kinds[mode]} if mode in kinds else None
    elif isinstance(one.tool_choice, dict) and _named(one.tool_choice) in map(_named, functions):
        choice = {"type": "tool", "name": one.tool_choice["name"]}
    if one.parallel_tool_calls is False and one.tools and (choice or {}).get("type") != "none":  # that has no calls
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    tools = [
        {"name": tool.get("name"), "input_schema": tool.get("parameters") or {"type": "object"}}
        | ({"description": tool["description"]} if tool.get("description") else {})
        for tool in functions
    ]
    form = one.response_format or {}
    return {
        "system": "\n\n".join(text for text in (one.instructions, *one.system) if text) or None,
        "tools": tools,
        "tool_choice": choice if tools else None,
        "output_config": {"format": {"type": "json_schema", "schema": form["schema"]}} if "schema" in form else None,
        "max_tokens": one.max_output_tokens,
        "stop_sequences": one.stop,
    }


def turn_request(stored: Mapping[str, Json]) -> TurnRequest:
    """Return the view of stored fields. A field of another type is left out: a client may have stored it itself."""
    known: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        if name in stored and name != "system":  # no client sends it: `turn.history` sets it
            with suppress(msgspec.ValidationError):
                msgspec.convert(stored[name], _TYPES[name])  # checks more, such as ranges
                known[name] = msgspec.convert(stored[name], kind)
    return TurnRequest(**known)


def own_tools(options: Mapping[str, Json]) -> dict[str, dict[str, Json]]:
    """Return the type and the namespace of each tool that the caller runs. A name in two namespaces has none."""
    found: dict[str, dict[str, Json]] = {}
    for one in tools_in(options):
        group = one.get("name") if one.get("type") == "namespace" else None
        for tool in tools_in(one) if group is not None else [one]:
            if isinstance(name := tool.get("name"), str):
                found[name] = {"type": tool.get("type"), "namespace": None if name in found else group}
    return found


def tools_in(options: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Return the tools in stored options, which a client of the hub may have written in any form."""
    tools = options.get("tools")
    return [one for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []


def options_in(body: Mapping[str, Json], *, is_strict: bool = True) -> dict[str, Json]:
    """Return the known fields in the body of a request under the names of `TurnRequest`; null or empty means none.

    Raises InvalidRequest, which names the field, for one of another type; unless `is_strict`, it is left out.
    """
    settings, found = body.get("callSettings"), dict[str, Json]()  # those of assistant-ui
    body = {**settings, **body} if isinstance(settings, dict) else body
    suppressed = () if is_strict else (InvalidRequest,)
    for kind, expected, names in _CHECKED if is_strict else ():
        for name in names:
            _check(body.get(name), kind | None, name, expected)
    for name, (expected, given_names) in _NAMES.items():
        for given in given_names:
            value = _inside(body, given)
            if value in (None, [], {}):
                continue
            value = _READERS[name](value) if name in _READERS else value
            with suppress(*suppressed):
                _check(value, _TYPES[name], given, expected)
                found[name] = value
                break
    # some APIs have the effort as a text; in the AI SDK, `provider-default` sets no effort
    efforts = (_inside(body, name) for name in ("reasoning_effort", "reasoning", "config.reasoningEffort"))
    if effort := next((one for one in efforts if isinstance(one, str) and one != "provider-default"), None):
        found["reasoning"] = {"effort": effort, **found.get("reasoning", {})}
    extra = {name: body[name] for name in _EXTRA if body.get(name) is not None}
    return {**found, **({"extra": extra} if extra else {})}


def _check(value: Json, kind: Any, name: str, expected: str) -> None:
    """Raise InvalidRequest about the field `name` unless `value` is of the type `kind`."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise InvalidRequest(f"{name} must be {expected}, got {value!r:.80}", param=name.split(".")[0]) from None


def _inside(body: Mapping[str, Json], path: str) -> Json:
    """Return the value at a path such as `text.format`; None if there is none."""
    value: Json = body
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _tools(value: Json) -> Json:
    """Return tools in the form of Responses. Chat completions nest a function; assistant-ui sends them by name."""
    if isinstance(value, dict):
        value = [{"name": name, **tool} if isinstance(tool, dict) else tool for name, tool in value.items()]
    return [_flat(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


def _flat(tool: dict[str, Json]) -> dict[str, Json]:
    """Return a tool or a choice as Responses has it: its fields beside its type, and without secrets."""
    kind = tool.get("type", "function")
    nested = tool.get(kind) if isinstance(kind, str) else None
    flat = {"type": kind, **nested} if isinstance(nested, dict) else {"type": kind, **tool}
    if "parameters" not in flat and isinstance(flat.get("inputSchema"), dict):
        flat["parameters"] = flat.pop("inputSchema")
    if kind == "custom" and isinstance(flat.get("format"), dict):
        flat["format"] = _flat(flat["format"])
    # secrets of a caller, such as those of an MCP server: a question is shown to all viewers
    return {name: value for name, value in flat.items() if name not in _SECRETS}


def _choice(value: Json) -> Json:
    """Return a `tool_choice` in the form of Responses; a value that is no choice stays as it is."""
    if isinstance(value, dict) and isinstance(value.get("toolName"), str):  # of the AI SDK
        return {"type": "function", "name": value["toolName"]}
    if not isinstance(value, dict):
        return value
    if value.get("type") in ("auto", "none", "required"):
        return value["type"]
    flat = _flat(value)
    return {**flat, "tools": _tools(flat["tools"])} if "tools" in flat else flat


def _form(value: Json) -> Json:
    """Return a form as Responses has it. Chat completions nest a schema, and the AI SDK need not name it."""
    if isinstance(value, dict) and value.get("type") == "json":
        named = {"name": "response", **{name: one for name, one in value.items() if one is not None}}
        return {**named, "type": "json_schema"} if isinstance(value.get("schema"), dict) else {"type": "json_object"}
    nested = value.get("json_schema") if isinstance(value, dict) else None
    return {"type": "json_schema", **nested} if isinstance(nested, dict) else value


_SECRETS = ("authorization", "headers")
_ALLOWED = "allowed_tools"  # type of a `tool_choice` with a mode and the tools that the model may call
_FIELDS = {one.name: one.type for one in msgspec.structs.fields(TurnRequest)}
_INT64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES = _FIELDS | {
    "tool_choice": str | _Choice | None,
    "seed": _INT64 | None,
    "max_output_tokens": Annotated[int, Meta(ge=1, le=2**63 - 1)] | None,
}
# By type: other fields of OpenAI's requests, of which a wrong type is refused.
_CHECKED: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (bool, "true or false", ("stream", "store", "logprobs")),
    (_INT64, "a whole number", ("max_tool_calls", "top_logprobs")),
    (Literal[1], "1, as an agent gives one answer", ("n",)),
    (float, "a number", ("frequency_penalty", "presence_penalty")),
    (str, "a text", ("reasoning_effort", "service_tier", "truncation", "user", "prompt_cache_key")),
    (str, "a text", ("prompt_cache_retention", "safety_identifier")),
    (list[str], "a list of texts", ("include", "modalities")),
    (dict, "an object", ("logit_bias", "prompt", "stream_options", "text")),
    (dict[str, str], "an object whose values are texts", ("metadata",)),
)
# By the name in `TurnRequest`: the expected type, and the names in requests; the first given one counts.
_NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "model": ("a text", ("model", "config.modelName")),
    "instructions": ("a text", ("instructions", "system")),
    "tools": ("a list of objects", ("tools",)),
    "tool_choice": ("a text or an object with a type", ("tool_choice", "toolChoice")),
    "parallel_tool_calls": ("true or false", ("parallel_tool_calls",)),
    "response_format": ("an object", ("text.format", "response_format", "responseFormat")),
    "verbosity": ("a text", ("text.verbosity", "verbosity")),
    "max_output_tokens": (
        "a whole number from 1",
        ("max_output_tokens", "max_completion_tokens", "max_tokens", "maxOutputTokens", "maxTokens"),
    ),
    "reasoning": ("an object", ("reasoning",)),
    "temperature": ("a number", ("temperature",)),
    "top_p": ("a number", ("top_p", "topP")),
    "seed": ("a whole number of at most 64 bits", ("seed",)),
    "stop": ("a text or a list of texts", ("stop", "stopSequences")),
    "metadata": ("an object", ("metadata",)),
    "context": ("a list", ("context",)),
    "state": ("a value", ("state",)),
    "previous_response_id": ("a text", ("previous_response_id",)),
    "background": ("true or false", ("background",)),
}
_READERS: dict[str, Callable[[Json], Json]] = {
    "tools": _tools,
    "tool_choice": _choice,
    "response_format": _form,
    "stop": lambda value: [value] if isinstance(value, str) else value,
}
