{% macro minutes_between(started_at, ended_at) -%}
    {#- Whole seconds, rounded up to minutes: the way rides are billed. -#}
    cast(ceil({{ dbt.datediff(started_at, ended_at, 'second') }} / 60.0) as integer)
{%- endmacro %}


{% macro euros(cents) -%}
    cast({{ cents }} / 100.0 as numeric(12, 2))
{%- endmacro %}
