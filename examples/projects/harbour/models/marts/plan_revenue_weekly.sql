select
    cast({{ dbt.date_trunc('week', 'ridden_on') }} as date) as week_starting,
    cast(plan_id as varchar(16)) as plan_id,
    cast(count(*) as integer) as rides,
    cast(count(distinct rider_id) as integer) as riders,
    cast(sum(billable_minutes) as integer) as billable_minutes,
    cast(sum(charge_cents) as integer) as charged_cents
from {{ ref('fct_rides') }}
group by 1, 2
