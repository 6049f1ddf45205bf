-- The weeks together hold exactly the rides and cents of the ride log.
with weeks as (

    select
        sum(rides) as rides,
        sum(charged_cents) as charged_cents
    from {{ ref('plan_revenue_weekly') }}

),

log as (

    select
        count(*) as rides,
        sum(charge_cents) as charged_cents
    from {{ ref('fct_rides') }}

)

select
    weeks.rides,
    weeks.charged_cents,
    log.rides as rides_in_log,
    log.charged_cents as charged_cents_in_log
from weeks
cross join log
where
    weeks.rides <> log.rides
    or weeks.charged_cents <> log.charged_cents
