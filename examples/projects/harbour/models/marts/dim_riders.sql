with rides as (

    select
        rider_id,
        cast(count(*) as integer) as rides,
        min(ridden_on) as first_ride_on,
        max(ridden_on) as last_ride_on,
        cast(sum(charge_cents) as integer) as charged_cents
    from {{ ref('int_rides_priced') }}
    group by rider_id

)

select
    riders.rider_id,
    riders.first_name,
    riders.plan_id,
    plans.plan_name,
    riders.home_station_id,
    riders.joined_on,
    riders.accepts_marketing,
    coalesce(rides.rides, 0) as rides,
    rides.first_ride_on,
    rides.last_ride_on,
    {{ harbour_units.euros('coalesce(rides.charged_cents, 0)') }} as charged_euros,
    case
        when rides.rider_id is null then 'never rode'
        when rides.last_ride_on >= cast('{{ var("day_after_last") }}' as date) - 7 then 'active'
        else 'lapsed'
    end as engagement
from {{ ref('stg_riders') }} as riders
inner join {{ ref('stg_plans') }} as plans on riders.plan_id = plans.plan_id
left join rides on riders.rider_id = rides.rider_id
