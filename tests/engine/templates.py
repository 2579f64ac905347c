"""Small chat templates with the rules of models whose originals are out of reach of a test."""

#: Mistral: [INST] around user turns, no system role of its own, roles must alternate.
MISTRAL = """{{ bos_token }}{% set ns = namespace(expect_user=true) %}{% for message in messages %}
{%- if message['role'] == 'system' %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- if (message['role'] == 'user') != ns.expect_user %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- set ns.expect_user = not ns.expect_user %}
{%- if message['role'] == 'user' %} [INST] {{ message['content'] }} [/INST]
{%- else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"""

#: Phi-3: <|role|> lines that end in <|end|>.
PHI = """{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
